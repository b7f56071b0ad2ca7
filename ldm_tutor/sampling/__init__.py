"""Floor 3: from noise to latents: one step of each sampler, the loop, guidance."""
