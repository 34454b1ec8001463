"""WizardScreen: machine, model and wishes beside the plans for them. It passes on; nothing is decided here."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from app.fit.words import JOINING, over_machines
from app.tui.daemon_thread import in_daemon_thread
from app.tui.dependencies import WizardOutside
from app.tui.fit.wishes import Wishes
from app.tui.latest import Latest
from app.tui.screens.compare import CompareScreen
from app.tui.widgets.fit_headline import FitHeadline
from app.tui.widgets.machine_panel import MachinePanel
from app.tui.widgets.model_panel import ModelPanel
from app.tui.widgets.plan_details import PlanDetails
from app.tui.widgets.plan_table import PlanTable
from app.tui.widgets.step_bar import STEPS, StepBar
from app.tui.widgets.wishes_panel import WishesPanel
from backend.errors import ShardwiseError
from backend.hardware.cluster import Cluster
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport, WayOut

# From this width on, everything stands side by side.
WIDE = 136
# Where the focus goes with each step.
FOCUS = {"machine": "#hardware", "model": "#search", "wishes": "#goal", "plans": "PlanList"}


class WizardScreen(Screen[None]):
    """What fits, how fast, what it costs. A narrow terminal shows one step at a time, a wide one all of them."""

    DEFAULT_CSS = """
    WizardScreen {
        #body { height: 1fr; layout: vertical; }
        #asked, #answered { height: 1fr; }
        .pane { padding: 0 1; }
        #machine, #model { height: 1fr; }

        &.-narrow {
            .pane { display: none; }
            #asked, #answered, PlanDetails { display: none; }
            &.-machine, &.-model, &.-wishes { #asked { display: block; } }
            &.-machine MachinePanel { display: block; }
            &.-model ModelPanel { display: block; }
            &.-wishes { #asked { height: auto; } WishesPanel { display: block; } #answered { display: block; } }
            &.-plans { #answered { display: block; } PlanTable { max-height: 9; } PlanDetails { display: block; } }
            PlanTable { margin: 1 0 0 0; height: auto; }
        }
        &.-wide {
            StepBar { display: none; }
            #body { layout: horizontal; }
            #asked { width: 42%; max-width: 66; overflow-y: auto; }
            #answered { width: 1fr; }
            .pane { border: round $border; border-title-color: $text-primary; }
            .pane:focus-within { border: round $primary; }
            MachinePanel { height: 2fr; min-height: 8; }
            ModelPanel { height: 1fr; min-height: 9; }
            #answered { border: round $border; border-title-color: $text-primary; padding: 0 1; }
            #answered:focus-within { border: round $primary; }
            PlanTable { height: 1fr; min-height: 5; margin: 0 0 1 0; }
            PlanDetails { height: 2fr; }
        }
    }
    """
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 (Textual declares it so)
        (0, "-narrow"),
        (WIDE, "-wide"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back", id="wizard.back", tooltip="Back to where you were"),
        *(
            Binding(key, f"go('{step}')", name, show=False, id=f"wizard.{step}", tooltip=what)
            for key, step, name, what in STEPS
        ),
    ]
    HELP = """
# What fits

Choose a machine (`F2`), a model (`F3`) and what you wish for (`F4`); the plans (`F5`) follow at once, best first.
`tab` and the arrow keys move; `left`, `right`, `home` and `end` move a slider.

Among the plans, `enter` starts the server with the highlighted one, `m` marks one and `c` compares another with it.
`tab` leads on to its memory, the ways out where it does not fit, and the reasons.
*fits with margin* and *fits* hold under load; *fragile* would start, and fail or crawl; *too large* does not start.
Times and prices are predictions: the ranges come from measured efficiencies, the price from a dated table or from you.

A machine elsewhere is written like `2x RTX-3090 pcie` or `2 nodes of 4x A100-80GB, ib-hdr`, or is a YAML file.
"""

    class Use(Message):
        """The user wants a server with these options."""

        def __init__(self, model: str, options: tuple[str, ...]) -> None:
            super().__init__()
            self.model, self.options = model, options

    class Wished(Message):
        """What the controls are set to, for the next visit."""

        def __init__(self, wishes: Wishes) -> None:
            super().__init__()
            self.wishes = wishes

    def __init__(self, outside: WizardOutside, wishes: Wishes) -> None:
        super().__init__()
        self._outside = outside
        self.wishes = wishes
        self._cluster: Cluster | None = None
        self._known: KnownModel | None = None
        self.report: FitReport | None = None
        self._planner: Latest[Wishes] = Latest(self._run_planner, self._plan)
        self.add_class("-machine")

    # Composing ---------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield StepBar()
        yield FitHeadline()
        with Horizontal(id="body"):
            with Vertical(id="asked"):
                yield MachinePanel(self.wishes.hardware)
                yield ModelPanel()
                yield WishesPanel(self.wishes)
            with Vertical(id="answered"):
                yield PlanTable()
                yield PlanDetails()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#answered").border_title = "F5 Plans"
        self._say("Choose a model.")
        self._load_offers()
        self._read_hardware(self.wishes.hardware)
        if self.wishes.model:
            self._look_up(self.wishes.model)
        self.action_go("machine" if self.wishes.model else "model")

    @property
    def settled(self) -> bool:
        """Whether nothing is being read, looked up or planned."""
        return self._planner.idle and not any(
            worker.group in ("offers", "hardware", "model") and not worker.is_finished for worker in self.workers
        )

    @property
    def _narrow(self) -> bool:
        return self.size.width < WIDE

    def action_go(self, step: str) -> None:
        """Shows a step, and moves the focus there."""
        for _, each, _, _ in STEPS:
            self.set_class(each == step, f"-{each}")
        self.query_one(StepBar).step = step
        self.call_after_refresh(lambda: self.query_one(FOCUS[step]).focus())

    # What is asked -----------------------------------------------------------------------------------------------

    @work(group="offers")
    async def _load_offers(self) -> None:
        try:
            self.query_one(ModelPanel).offer(await in_daemon_thread(self._outside.offers))
        except ShardwiseError as error:
            self.query_one(ModelPanel).refuse(error, self._known)

    @on(MachinePanel.Wanted)
    def _want_machine(self, event: MachinePanel.Wanted) -> None:
        self._read_hardware(event.hardware, go_on=True)

    @work(exclusive=True, group="hardware")
    async def _read_hardware(self, hardware: str, go_on: bool = False) -> None:
        panel = self.query_one(MachinePanel)
        try:
            cluster = await in_daemon_thread(lambda: self._outside.hardware(hardware))
        except ShardwiseError as error:
            panel.refuse(error)
            return
        self._cluster = cluster
        panel.show(cluster)
        self._wish(replace(self.wishes, hardware=hardware))
        if go_on and self._known is None:
            self.action_go("model")

    @on(ModelPanel.Chosen)
    def _choose(self, event: ModelPanel.Chosen) -> None:
        self._look_up(event.model, go_on=True)

    @work(exclusive=True, group="model")
    async def _look_up(self, model: str, go_on: bool = False) -> None:
        """Plans with what the catalogue knows, at once, and with what the files or the hub tell as soon as they do."""
        panel = self.query_one(ModelPanel)
        panel.expect(model)
        try:
            sketch = await in_daemon_thread(lambda: self._outside.sketch(model))
            if sketch is not None:
                self._take(model, sketch, go_on)
            known = await in_daemon_thread(lambda: self._outside.known(model))
        except ShardwiseError as error:
            panel.refuse(error, self._known)
            if self._known is None:
                self._say("Choose a model.")
            return
        if known != sketch:
            self._take(model, known, go_on and sketch is None)

    def _take(self, model: str, known: KnownModel, go_on: bool) -> None:
        self._known = known
        self.query_one(ModelPanel).show(known)
        self._wish(replace(self.wishes, model=model))
        if go_on:
            self.action_go("wishes")

    @on(WishesPanel.Changed)
    def _wishes_changed(self, event: WishesPanel.Changed) -> None:
        changed = event.wishes
        self._wish(replace(changed, model=self.wishes.model, hardware=self.wishes.hardware))

    def _wish(self, wishes: Wishes) -> None:
        """Every change comes here: it is shown in the controls, remembered, and planned for at once."""
        self.wishes = wishes
        if self._known is not None:
            self.query_one(WishesPanel).show(wishes, self._known.facts.max_positions)
        self.post_message(self.Wished(wishes))
        if self._known is not None and self._cluster is not None:
            self._planner.ask(wishes)

    # What is answered --------------------------------------------------------------------------------------------

    @work(group="planner")
    async def _run_planner(self) -> None:
        await self._planner.run()

    async def _plan(self, wishes: Wishes) -> None:
        known, cluster = self._known, self._cluster
        if known is None or cluster is None:
            return
        ask = wishes.ask(known.facts.max_positions)
        try:
            report = await in_daemon_thread(lambda: self._outside.fit(known, cluster, ask))
        except ShardwiseError as error:
            self.report = None
            self.query_one(PlanTable).show(())
            self._say(str(error))
            return
        if not self._planner.overtaken:
            self._show(report)

    def _show(self, report: FitReport) -> None:
        first = report.best or 0
        self.report = report
        self.query_one(PlanTable).show(report.plans, first, own=report.ask.engine == "shardwise")
        self.query_one(FitHeadline).show(report)
        self._explain(first)

    def _say(self, text: str) -> None:
        self.query_one(FitHeadline).say(text)
        self.query_one(PlanDetails).say(text)

    @on(PlanTable.Highlighted)
    def _highlighted(self, event: PlanTable.Highlighted) -> None:
        self._explain(event.plan)

    def _explain(self, number: int) -> None:
        if self.report is not None:
            self.query_one(PlanDetails).show(self.report, number, together=self._narrow)

    def on_resize(self) -> None:
        if self.report is not None:
            self._explain(self.query_one(PlanTable).highlighted)

    # What is done with a plan ------------------------------------------------------------------------------------

    @on(PlanTable.Asked)
    def _asked(self, event: PlanTable.Asked) -> None:
        if self.report is None or event.plan >= len(self.report.plans):
            return
        table = self.query_one(PlanTable)
        if event.what == "mark":
            table.mark(None if table.marked == event.plan else event.plan)
        elif event.what == "compare":
            self._compare(table.marked, event.plan)
        else:
            self._use(event.plan)

    def _compare(self, marked: int | None, highlighted: int) -> None:
        """The marked plan, or the best one, beside the highlighted."""
        report = self.report
        if report is None:
            return
        other = marked if marked is not None else (report.best or 0)
        if other == highlighted:
            self.notify("Highlight another plan to compare with this one.", markup=False)
            return
        self.app.push_screen(CompareScreen(report, other, highlighted), self._after_comparison)

    def _after_comparison(self, chosen: int | None) -> None:
        if chosen is not None:
            self._use(chosen)

    def _use(self, number: int) -> None:
        """Starts the plan here, hands its command over where it is for elsewhere, or says why it cannot be."""
        report, cluster = self.report, self._cluster
        if report is None or cluster is None:
            return
        plan, own = report.plans[number], report.ask.engine == "shardwise"
        if plan.verdict.kind == "too large" or (own and not plan.runnable):
            self._tell(plan.blocked or plan.verdict.sentence, "This plan cannot be started")
        elif not own:
            self._hand_over(" ".join(("vllm serve", report.model, *plan.options)), "vLLM is not started from here")
        elif not cluster.local:
            where = f"Machines join first: {JOINING}" if over_machines(plan) else "That machine is elsewhere"
            self._hand_over(" ".join(("shardwise serve", report.model, *plan.options)), where)
        else:
            self.post_message(self.Use(self.wishes.model, plan.options))

    def _hand_over(self, command: str, why: str) -> None:
        self.app.copy_to_clipboard(command)
        self._tell(f"{command}\n(It is in the clipboard.)", f"{why}: run this there")

    def _tell(self, text: str, title: str) -> None:
        self.notify(text, title=title, timeout=15, markup=False)

    @on(PlanDetails.Applied)
    def _apply(self, event: PlanDetails.Applied) -> None:
        """Makes a way out: by the controls where one can, by choosing a plan that has it, or it stays a sentence."""
        changed = self.wishes.with_option(event.way.option)
        if changed is None:
            self._highlight_with(event.way)
        elif changed.hardware != self.wishes.hardware:
            self.query_one(MachinePanel).set_hardware(changed.hardware)
            self._read_hardware(changed.hardware)
        else:
            self._wish(changed)

    def _highlight_with(self, way: WayOut) -> None:
        """Shows the first plan that fits and has the way's option."""
        plans = self.report.plans if self.report is not None else ()
        for number, plan in enumerate(plans):
            if way.option and plan.verdict.kind != "too large" and set(way.option.split()) <= set(plan.options):
                self.query_one(PlanTable).highlight(number)
                return
        option = f" ({way.option})" if way.option else ""
        self.notify(f"{way.what}{option}", title="No control makes this change", markup=False)
