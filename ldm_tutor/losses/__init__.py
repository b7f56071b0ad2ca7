"""Floor 3: what each network is trained to make small."""
