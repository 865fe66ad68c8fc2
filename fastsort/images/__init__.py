"""What happens to every image: read in batches, cropped, phase-flipped, normalised."""
