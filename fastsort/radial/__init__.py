"""Where the mass of an image lies: template correlation, peaks, clusters, verdict."""
