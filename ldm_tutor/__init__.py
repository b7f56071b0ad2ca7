"""A latent diffusion model to build, train and steer. Import its parts by their module: this file defines nothing."""
