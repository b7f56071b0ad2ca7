"""The stages of the recipe, one file each: judge, autoencoder, CLIP, denoiser."""
