"""Numbers that the lessons quote and no cell prints: what they are from, so that a reader and the tests can look.

A number in a lesson's prose is printed or set by a cell of that lesson, or it stands here, in a paragraph that has the
cue (a regular expression, any case). Thousands have no comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Cue of the paragraph: source: its numbers, separated by spaces.
PAPER_FIGURES: dict[str, dict[str, str]] = {
    # Rombach et al. 2022 (arXiv 2112.10752)
    r"\bRombach\b|\bpapers?\b|\btables?\b": {
        "Rombach 2022, table 1: unconditional 256 x 256, FID, precision, recall": """
            5.11 .72 .49 4.98 .73 .50 4.02 .64 .52 2.95 .66 .48 1.59 1.52 1.90 2.35 3.08 3.86 4.16 4.21 4.9 5.54
            7.16 7.22 7.89 8.0 9.57 10.2 15.8""",
        "Rombach 2022, section 4.1, appendix: samples for an FID; Inception's features": "5000 50000 2048",
        "Rombach 2022, table 2: text to image on MS-COCO, FID, IS, parameters": """
            23.31 20.03 .33 12.63 30.29 .42 1.45 27.10 18.20 26.94 26.02 12.24 11.84""",
        "Rombach 2022, tables 3 and 10: class-conditional ImageNet, FID, IS, precision, recall, parameters": """
            6.95 203.6 .87 .28 340 10.94 100.98 .69 .63 554 4.59 186.7 .82 .52 608 3.85 221.72 .84 .53 4.88
            158.71 17.41 72.92 .65 .62 395 15.51 79.03 8.11 190.43 .83 .36 506 7.76 209.52 .35 10.56 103.49 .71
            400 3.95 178.22 .81 .55 3.60 247.67 .48""",
        "Rombach 2022, tables 5 and 11: super-resolution, FID, IS, PSNR, SSIM, millions of parameters, speed": """
            15.2 121.1 27.9 .801 625 5.2 180.1 26.4 .762 2.8 4.8 166.3 24.4 3.8 .69 .14 169 4.62 2.4 4.3 174.9
            24.7 4.1 .71 .15 552 4.5 4.4 6.4 153.7 25.8 3.7 .74 .12 184 .38 2.6 4.6 169.8 5.1 7.1 163.1 24.1 3.3
            .59""",
        "Rombach 2022, table 4: user study, per cent": "16.0 30.4 29.4 70.6 13.6 21.0 31.9 68.1",
        "Rombach 2022, table 6: inpainting, speed and FID": """
            .11 .26 .07 20.66 24.74 .32 .97 .34 7.66 15.21 .33 7.04 14.99 .35 .99 .36 6.66 15.95 2.7 1.6""",
        "Rombach 2022, table 7: inpainting on Places 512 x 512, FID and LPIPS": """
            9.39 .246 1.50 .137 12.89 .257 2.40 .142 11.87 2.15 .144 12.60 .259 2.37 .145 12.31 .243 2.23 .134
            12.0 .24 2.21 .14 10.4 .26 1.82 .15 21.3 22.1 30.5""",
        "Rombach 2022, table 8: autoencoders, R-FID, R-IS, PSNR, PSIM, SSIM": """
            31.83 40.40 17.45 2.90 2.58 .48 .41 5.15 144.55 20.83 3.61 1.73 .43 .54 1.14 201.92 23.07 3.99 1.17
            .36 .65 1.49 194.20 22.35 3.81 1.26 .37 .62 0.58 224.78 27.43 4.26 0.53 .21 .82 1.06 221.94 25.21
            4.17 0.72 .26 .76 0.47 223.81 26.43 4.22 0.62 .24 .80 0.16 232.75 30.85 4.12 0.27 .12 .91 0.40
            226.62 29.13 3.46 0.38 .13 .90 2.04 189.53 22.27 3.93 1.41 .40 .61 7.3 132.75 20.38 3.56 1.88 .45
            .53 0.87 210.31 24.08 1.07 .68 2.63 178.68 21.94 3.92 .59 0.90 209.90 24.19 4.19 1.02 .35 .69 227.57
            27.53 4.54 0.55 0.086 232.66 32.47 0.20 .09 .93 4.98 19.9 7.94 32.01 22.8""",
        "Rombach 2022, table 9: layout to image, FID": """
            42.06 40.91 41.11 41.65 42.55 56.58 32.02 45.33 35.80 48.11""",
        "Rombach 2022, table 18: V100 days and pictures a second": """
            18 6.80 14.4 .43 26 1.07 79 1.9 91 1.93 271 .7 .4 916 962 .07 2.2""",
        "Rombach 2022, figure 6: gap of FID between factors 1 and 8": "38",
        "Rombach 2022, table 12: iterations in thousands, batch, learning rate": """
            410 48 9.6 635 42 8.4 500 96 1900""",
        "Rombach 2022, table 15: conditional models, parameters in millions, iterations in thousands, batch": """
            1.45 390 680 306 345 170 178 1200 169 860 64 215 360 128 390000""",
        "Rombach 2022, table 13: millions of parameters of LDM-4, and of its published configuration": "391 400.9",
        "Rombach 2022, table 15 against the published configuration: super-resolution, millions": "169 113.6",
        "Rombach 2022, section 3 and appendix G: weight of the KL term, adaptive weight": "0.000001 10000 0.0001",
    },
    # the published code and weights
    "Stable Diffusion|at full size|published|repository|original|scaled linear|script": {
        "CompVis/latent-diffusion, configurations of the first stages": """
            50001 0.5 0.75 0.6 8192 16384 256 384 0.0000045""",
        "CompVis/latent-diffusion, training steps of the released autoencoders": """
            533066 658131 971043 1608649 1101166 176991 246803 442998 406763""",
        "CompVis/stable-diffusion, configuration of version 1": """
            0.18215 0.00085 0.012 1000 320 768 77 8 7.5 50 512 64 0.9999 10000 2048""",
        "CompVis/stable-diffusion, model card: steps in thousands, pictures, hours": "237 194 515 195 225 150000",
        "CompVis schedules: beta from and to": "0.0015 0.0195 0.0155 0.0205 0.00085 0.012",
        "Stable Diffusion's schedule, computed: alpha_bar and signal-to-noise at its ends": """
            0.999150 0.998296 0.980381 0.070514 0.060356 0.005776 0.004660 0.00468 14.61 0.0292""",
        "CompVis scripts: steps and scale of latent-diffusion's text to image, of Stable Diffusion's": "200 5 50 7.5",
        "Steps of Stable Diffusion's samplers: first and last time of 50 steps, of all 1000": "981 961 1 999",
    },
    # counts of parameters, on the meta device
    "parameters|million|billion|logits|receptive|weights|numbers": {
        "Parameters of Stable Diffusion v1: U-Net, autoencoder, its halves, text tower, all": """
            859520964 860 83653863 84 34163592 49490179 123060480 123 1066235307 1.07 1.1""",
        "Parameters of the text-to-image LDM: U-Net, BERT, its unused layer, both": """
            872300484 872 581994042 582 542895360 39098682 1454294526 1.45""",
        "Parameters of the layout model in millions: U-Net, encoder without its unused layer": "246 55",
        "Gigabytes of Stable Diffusion's U-Net in float32: 859,520,964 times 4 bytes": "3.4",
        "PatchGAN: receptive field of three and of two layers, logits at 256 x 256": "70 34 30 62",
        "Parameters of the discriminators and the other first stages": """
            2765633 663361 55312063 69610963 103880131 55322782 53219486 67717295 67652783 69593371""",
        "Parameters of the other U-Nets": """
            274056163 294966916 394984196 400920579 403623939 186154682 246277379 58858496 215229315 215230467
            387245827 113622563 1335480400 859535364""",
    },
    # other papers
    "DDPM|Ho,|cosine|CLIP|Radford|Nichol": {
        "Ho, Jain, Abbeel 2020: DDPM, beta from and to, steps": "0.0001 0.02 1000",
        "Radford et al. 2021: CLIP, pairs in millions, batch, temperature": "400 32768 0.07 100",
    },
    "prompt-to-prompt|Hertz|Mokady|null-text|edited": {
        "Hertz et al. 2022 and their notebooks: steps, guidance, injection shares, threshold, seeds, weights": """
            50 7.5 5 .8 .4 .2 .3 8888 888 .5""",
        "Mokady et al. 2022: null-text inversion, inner steps, learning rate, stop": "10 0.01 0.00001 0.00002 7.5 50",
    },
    "A100|V100|H100|GPU": {
        "Data sheets of V100, A100, H100: 16-bit multiply-adds a second in 1e12, half the operations": "62.5 156 494.5",
    },
    # plain arithmetic
    "": {
        "Arithmetic: 8 x 8 pixels of 3 colours; 256 x 256 pixels of 3 colours; 64 x 64 x 4 latents; 512 x 512 x 3": """
            192 196608 16384 786432""",
        "The schedules' steps are numbered from 0 to 999": "999 1000",
        "Arithmetic: 64 x 64 and 256 x 256 positions": "4096 65536",
        "Arithmetic: powers of two that name a size": "128 256 512 1024",
    },
}


def known_numbers(paragraph: str) -> Iterator[float]:
    """The numbers of the list that a paragraph may quote."""
    for cue, sources in PAPER_FIGURES.items():
        if re.search(cue, paragraph, re.IGNORECASE):
            for numbers in sources.values():
                yield from map(float, numbers.split())
