"""The bill explorer: choose a published run, a GPU, how many, and a utilisation; read days and energy."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import COLORS, check_alt, figure_style
from ldm_tutor.training.bill import GPUS, bill, find_run, implied_utilisation, kept_bytes, paper_runs, run_work
from ldm_tutor.widgets.live import LiveFigure, make_control

LATENTS = ("encoded at every step", "cached")
UTILISATION = (0.05, 0.6, 0.3, 0.05)  # least, most, start, step


class BillExplorer:
    """Draws and tells what a published run comes to."""

    def caption(self, run: str, gpu: str, gpus: int, utilisation: float, latents: str) -> str:
        """Say in words what the figure shows."""
        cached = _is_cached(latents)
        found = bill(run, gpu, utilisation, gpus, cached)
        memory = kept_bytes(run) / 1e9
        reported = find_run(run).reported_days
        told = "its source names no days"
        if reported is not None:
            share = implied_utilisation(run)
            told = f"its source names {reported:,.1f} {find_run(run).reported_on}-days, {share:.0%} of the peak"
        return (
            f"{run}, latents {latents}: {run_work(run, cached):.2g} multiply-adds. On {gpus} x {gpu} at "
            f"{utilisation:.0%} of the 16-bit peak: {found.gpu_days:,.1f} GPU-days, {found.wall_days:,.2f} days on the "
            f"wall, {found.kilowatt_hours:,.0f} kWh in the GPUs; {told}. Weights, gradients, optimiser and average: "
            f"{memory:.1f} GB in each GPU, {memory / gpus:.1f} GB when sharded."
        )

    def draw(self, run: str, gpu: str, gpus: int, utilisation: float, latents: str) -> Figure:
        """Draw the GPU-days of each GPU beside the reported ones, and the days on the wall over the number of GPUs."""
        cached = _is_cached(latents)
        with figure_style():
            figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 2.9))
            for name in GPUS:
                shade = COLORS["blue"] if name == gpu else COLORS["sky"]
                days = bill(run, name, utilisation, 1, cached).gpu_days
                left.barh(name, days, color=shade)
                left.text(days, name, f" {days:,.1f}", va="center", fontsize=9)
            source = find_run(run)
            if source.reported_days is not None:
                left.axvline(source.reported_days, color=COLORS["vermilion"], linestyle="--")
                left.set_xlabel(f"GPU-days; dashed: reported, {source.reported_on}")
            else:
                left.set_xlabel("GPU-days")
            left.invert_yaxis()
            left.margins(x=0.15)
            left.grid(axis="y", visible=False)
            counts = [2**k for k in range(9)]
            right.plot(counts, [bill(run, gpu, utilisation, each, cached).wall_days for each in counts], "o-")
            right.plot(gpus, bill(run, gpu, utilisation, gpus, cached).wall_days, "s", color=COLORS["vermilion"])
            right.set(xscale="log", yscale="log", xlabel=f"number of {gpu}", ylabel="days on the wall")
            right.minorticks_off()
            right.set_xticks(counts, [str(each) for each in counts])
        return figure


def _is_cached(latents: str) -> bool:
    if latents not in LATENTS:
        raise ConfigError("BillExplorer: latents", given=latents, expected=f"one of {LATENTS}")
    return latents == "cached"


def bill_explorer(alt: str) -> None:
    """Show the bill with a choice of run, GPU, their number, utilisation, and whether latents are cached."""
    check_alt(alt)
    explorer = BillExplorer()
    controls: dict[str, Any] = {
        "run": list(paper_runs()),
        "gpu": list(GPUS),
        "gpus": (1, 256, 8),
        "utilisation": UTILISATION,
        "latents": list(LATENTS),
    }
    widgets = {name: make_control(name, control) for name, control in controls.items()}
    widgets["gpu"].value = "A100"
    LiveFigure(explorer.draw, alt, explorer.caption, widgets).show()
