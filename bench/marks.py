"""The marks that fastsoftmax should reach, and the cases that miss them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from .busy import BusyRun
from .cases import Case, Operation
from .contenders import ONE_THREAD
from .race import OURS, CaseResult, Run

FEW = 32  # classes
CALL_SECONDS = 1e-6
# How many times as long as another operation on the same scores: logsumexp (a divergence reads two arrays, and may take
# 1.5 times as long for each), or the loss with its gradient.
LOGSUMEXP: Operation = "logsumexp"
LOSS: Operation = "cross_entropy_with_grad"
OF_ANOTHER: dict[str, tuple[Operation, float]] = {
    "entropy": (LOGSUMEXP, 1.5),
    "log_softmax_at": (LOGSUMEXP, 1.1),
    "log_softmax_top_k": (LOGSUMEXP, 1.5),
    "sample": (LOGSUMEXP, 1.3),
    "sample_top_k": (LOGSUMEXP, 3.0),
    "sample_top_p": (LOGSUMEXP, 3.0),
    "kl_divergence": (LOGSUMEXP, 3.0),
    "cross_entropy_with_grad_hess": (LOSS, 1.3),
}
# The noise in a ratio of two loops that take the same time.
NOISE = 0.05
# Calls on at least this many elements must gain as much by threads as the loop `exp` does; smaller ones must not lose.
SHARED_ELEMENTS = 2**18

# How many times as long as with one thread a call may take with several: beside other processes that want the cores,
# and alone.
BESIDE = {"median": 1.1, "mean": 1.2, "percentile": 1.5}
ALONE = 1.03
# (elements, factor): from this many elements on, several threads on an idle machine have to be this many times as fast
# as one. On fewer elements, they must not lose.
GAINS = ((1_000_000, 1.8), (100_000, 1.5), (0, 1 / ALONE))

LEGEND = (
    "The marks: 1.5 times as fast as the fastest other library, and 3 times with up to 32 classes or a class axis that "
    "is not the last; at most 1.4 times the time of exp, and 2 times with up to 99 classes or such an axis; a call on "
    "fewer than 1000 numbers in at most 1 µs, or 1.3 times the time of np.exp if that is longer; entropy and the k "
    "largest in at most 1.5 times the time of logsumexp, log-probabilities at indices in 1.1 times, sample in 1.3 "
    "times, with top_k or top_p in 3 times, a divergence in 1.5 times that of both arrays; a Hessian beside loss and "
    "gradient in at most 1.3 times their time; two threads 1.8 times as fast as one, or as many times as exp gains if "
    "that is less, and no number of threads slower than one. [NOTES.md](NOTES.md) says what bounds the cases of each "
    "kind, and what was tried."
)
BUSY_LEGEND = (
    "The marks for several threads of fastsoftmax: beside processes that spin, at most 1.1 times the median of one "
    "thread, 1.2 times its mean and 1.5 times its 99th percentile; alone, at most 1.03 times its median; two processes "
    f"side by side take no longer than one that does the work of both, within {NOISE:.0%}; a gain of 1.8 from a "
    "million elements on, and of 1.5 from 100,000 on."
)


def table(runs: Sequence[Run], plain: bool = False) -> Table:
    grid = Table(
        title=None if plain else "marks that are missed",
        box=box.MARKDOWN if plain else box.SIMPLE_HEAD,
        pad_edge=plain,
        header_style="bold",
    )
    for heading in ("case", "threads", "mark", "wanted", "found"):
        grid.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for run in runs:
        results = {result.case: result for result in run.results}
        for result in run.results:
            another, _ = OF_ANOTHER.get(result.case.operation, (LOGSUMEXP, 0.0))
            for mark, wanted, found in missed(result, results.get(replace(result.case, operation=another, k=0))):
                grid.add_row(result.case.name, str(run.threads), mark, f"{wanted:.2f}", f"{found:.2f}")
    return grid


def missed(result: CaseResult, another: CaseResult | None = None) -> Iterator[tuple[str, float, float]]:
    """Yield (mark, wanted, found) for each mark that a case misses.

    `another` is the result of the operation that the case is compared with (`OF_ANOTHER`), if it was raced.
    """
    case, timings = result.case, result.timings
    fastest = result.rivals[0]
    lead = 3.0 if case.classes <= FEW or case.strided else 1.5
    if (found := result.ratio(fastest)) < lead:
        yield f"times as fast as {fastest}", lead, found
    if case.is_call:
        limit = max(CALL_SECONDS, 1.3 * timings["exp"].median if "exp" in timings else 0) * 1e6
        if (found := timings[OURS].median * 1e6) > limit:
            yield "µs a call", limit, found
    elif "exp" in timings:
        limit = limit_of_exp(case)
        if (found := result.ratio(OURS, "exp")) > limit:
            yield "/ exp", limit, found
    if another is not None and case.operation in OF_ANOTHER:
        name, limit = OF_ANOTHER[case.operation]
        if (found := timings[OURS].median / another.timings[OURS].median) > limit:
            yield f"/ {'logsumexp' if name == LOGSUMEXP else 'loss + gradient'}", limit, found
    if OURS + ONE_THREAD in timings:
        gain = result.ratio(OURS + ONE_THREAD)
        wanted = 1.0
        if case.elements >= SHARED_ELEMENTS and "exp" + ONE_THREAD in timings:
            wanted = max(1.0, min(1.8, result.ratio("exp" + ONE_THREAD, "exp")))
        if gain < wanted - NOISE:
            yield "gain by threads", wanted, gain


def missed_when_busy(run: BusyRun) -> Iterator[tuple[str, str, float, float]]:
    """Yield (case, mark, wanted, found) for each mark that is missed."""
    for beside in run.beside:
        for figure, most in BESIDE.items() if beside.spinning else [("median", ALONE)]:
            if beside.name == OURS and (found := beside.ratio(figure)) > most:
                yield beside.case.name, f"{figure} beside {beside.spinning} spinning", most, found
    for together in run.together:
        for name, ratio in together.ratios.items():
            if ratio > 1 + NOISE:
                yield together.case.name, f"{name}: side by side", 1.0, ratio
    for gain in run.gains:
        wanted = next(wanted for elements, wanted in GAINS if gain.case.elements >= elements)
        for found, when in ((gain.following, "calls that follow each other"), (gain.paused, "calls after 4 ms")):
            if found < wanted:
                yield gain.case.name, f"gain of {when}", wanted, found


def limit_of_exp(case: Case) -> float:
    return 2.0 if case.classes < 100 or case.strided else 1.4
