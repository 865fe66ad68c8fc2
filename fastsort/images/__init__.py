"""What is done to every image: it is read in a batch, cropped, phase-flipped and normalised."""
