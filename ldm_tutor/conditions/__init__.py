"""What a U-Net is told beside the noisy latents: tokens, channels, and both left out."""
