"""What the image is made of: prolate coefficients, steerable PCA, mixture of subspaces, sorting."""
