"""How wide rows travel between stages: narrower where the link holds everybody up, wider where it does not."""

from __future__ import annotations

import pytest

import edgeprism
from edgeprism.runtime.stage import Widths
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import ACTIVATIONS, Plan, parse_stages
from tests.families import difference, example, expected, make

pytestmark = pytest.mark.alone


def through(widths: Widths, num: int, *, waited_s: float, idle_s: float, busy_s: float = 1.0) -> list[str]:
    """So many micro-batches that are all alike; the width of each."""
    chosen = []
    for _ in range(num):
        chosen.append(str(widths.choose(ACTIVATIONS)))
        widths.waited(waited_s)
        widths.saw_credit(idle_s, busy_s)
    return chosen


def test_a_link_that_holds_everybody_up_gets_fewer_bits() -> None:
    """One step after another, a few micro-batches apart, to the narrowest and no further."""
    widths = Widths()
    widths.begin()
    chosen = through(widths, 40, waited_s=3.0, idle_s=3.0)
    assert chosen[0] == "exact" and chosen[-1] == "int4"
    assert sorted(set(chosen), key=chosen.index) == ["exact", "bfloat16", "int8", "int4"]


def test_who_is_slow_is_not_the_link() -> None:
    """A receiver that is always busy, however long this device waits; or a sender that has nothing to send."""
    for waited_s, idle_s in ((3.0, 0.0), (0.0, 3.0)):
        widths = Widths()
        widths.begin()
        assert set(through(widths, 100, waited_s=waited_s, idle_s=idle_s)) == {"exact"}


def test_while_a_pipeline_fills_nobody_is_to_blame() -> None:
    """Everybody behind has had nothing to do yet."""
    widths = Widths()
    for _ in range(10):
        widths.begin()
        assert set(through(widths, 2, waited_s=3.0, idle_s=9.0)) == {"exact"}


def test_a_link_that_is_fast_again_gets_more_bits() -> None:
    """After a while; and where that was too much, it is tried less and less often."""
    widths = Widths()
    widths.begin()
    through(widths, 40, waited_s=3.0, idle_s=3.0)
    assert through(widths, 400, waited_s=0.0, idle_s=0.0)[-1] == "exact"
    widths = Widths()
    widths.begin()
    widths_seen = []
    for _ in range(2000):
        codec = str(widths.choose(ACTIVATIONS))
        is_narrow = codec in ("int8", "int4")
        widths.waited(0.0 if is_narrow else 2.0)
        widths.saw_credit(0.0 if is_narrow else 2.0, 1.0)
        widths_seen.append(is_narrow)
    assert sum(widths_seen[1000:]) > 980


def test_short_streams_widen_again() -> None:
    """Each of two micro-batches, over a link that has become fast: as a long one would."""
    widths = Widths()
    widths.begin()
    through(widths, 40, waited_s=3.0, idle_s=3.0)
    for _ in range(400):
        widths.begin()
        last = through(widths, 2, waited_s=0.0, idle_s=9.0)[-1]
    assert last == "exact"


def test_the_allowed_widths_are_kept() -> None:
    """Of two, or of one."""
    widths = Widths()
    widths.begin()
    through(widths, 60, waited_s=3.0, idle_s=3.0)
    assert str(widths.choose(ACTIVATIONS[:2])) == "bfloat16" and str(widths.choose(ACTIVATIONS[2:3])) == "int8"


def test_wider_rows_have_deadlines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 kB over 5 Mbit/s after eighths of them: that it takes eight times as long is no failure."""
    monkeypatch.delenv("EDGEPRISM_DEADLINE_S", raising=False)
    size = {"height": 224, "width": 224}
    model = make("ViTForImageClassification", image_size=224, patch_size=16, hidden_size=512, num_hidden_layers=2)
    with (
        edgeprism.Cluster.spawn(2, link_rate_mbit=5.0, share_cores=True) as cluster,
        edgeprism.load(model, cluster=cluster, plan="replica") as engine,
    ):
        for codec in ("int4", "exact"):
            engine.use(Plan.pipeline(parse_stages("0:0-4,1:4-8"), 2, CodecSpec.parse(codec)))
            for _ in range(2):
                engine(**example("ViTForImageClassification", batch=4, **size))
                assert engine.last_trace is not None and not engine.last_trace.failures, codec


def test_rows_follow_a_slow_link() -> None:
    """Two processes over 2 Mbit/s: after some requests what travels is narrow, and answers are near."""
    model, inputs = (
        make("ViTForImageClassification", image_size=96),
        example("ViTForImageClassification", batch=1, height=96, width=96),
    )
    plan = Plan.pipeline(parse_stages("0:0-6,1:6-12"), 2, narrowest=CodecSpec.parse("int8"))
    with (
        edgeprism.Cluster.spawn(2, link_rate_mbit=2.0) as cluster,
        edgeprism.load(model, cluster=cluster, plan=plan) as engine,
    ):
        answers = [engine.submit(**inputs) for _ in range(40)]
        outputs = [answer.result(60) for answer in answers]
        first, last = answers[0].trace, answers[-1].trace
    assert first is not None and last is not None and not last.failures
    assert last.devices[0].bytes_sent < 0.3 * first.devices[0].bytes_sent
    reference = expected(model, inputs)
    assert difference(outputs[0], reference, inputs) <= 1e-4 < difference(outputs[-1], reference, inputs) <= 0.2
