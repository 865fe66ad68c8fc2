"""What the image looks like however it lies: Zernike moments, features blind to turns and shifts."""
