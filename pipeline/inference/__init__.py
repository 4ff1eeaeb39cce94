"""Any inpainter as a function of image and mask, for images of any size."""
