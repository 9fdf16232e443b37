"""Whether runs had converged, in words: a budget is called one."""

from typing import Any

from tests.sweep.standin import gains_of

from llava_mini.sweep.training import Training, budget


def result(
    converged: bool = True, gained: float | None = 0.001, noise: float | None = 0.004, **more: Any
) -> dict[str, Any]:
    own = {"converged": converged, "gained_last_third": gained, "gain_noise": noise, "steps": 300, "start": "a model"}
    return {**own, "gains": gains_of(own), **more}


def test_a_configuration_has_converged_when_all_its_runs_have() -> None:
    assert Training.of([result(), result()]).converged
    assert Training.of([result(), result()]).mark() == ""
    assert not Training.of([result(), result(False, 0.05)]).converged


def test_what_was_still_improving_is_marked_with_its_gain() -> None:
    marked = Training.of([result(False, 0.03), result(False, 0.032), result(False, 0.031)])
    assert marked.mark("dense") == "still improving: +3.1 points in the last third"
    one = Training.of([result(), result(False, 0.06), result()])
    assert one.mark("dense") == "still improving: +6.0 points in the last third, 1 of 3 runs"


def test_a_gain_that_is_unknown_or_noise_is_not_called_one() -> None:
    not_shown = "not shown to have converged"
    assert Training.of([result(False, None, None)]).mark("dense") == not_shown
    assert Training.of([result(False, -0.02)]).mark("dense") == not_shown
    assert Training.of([result(False, 0.03, 0.02)]).mark("dense") == not_shown
    assert Training.of([result(False, None, None), result(False, 0.02)]).mark("dense") == (
        f"still improving: +2.0 points in the last third, 1 of 2 runs; {not_shown}, 1 of 2 runs"
    )


def test_each_group_of_kinds_has_its_own_mark() -> None:
    done = {"gained": 0.001, "noise": 0.004, "improving": False, "converged": True}
    rising = {"gained": 0.05, "noise": 0.004, "improving": True, "converged": False}
    found = Training.of([result(False, gains={"dense": done, "one_word": rising})])
    assert found.converged_on("dense") and found.mark("dense") == ""
    assert not found.converged_on("one_word") and not found.converged
    assert found.mark("one_word") == "still improving: +5.0 points in the last third"
    assert found.mark() == "still improving: +5.0 points on one-word answers in the last third"


def test_what_improves_is_reported_before_what_is_not_known() -> None:
    noisy = {"gained": 0.001, "noise": 0.02, "improving": False, "converged": False}
    rising = {"gained": 0.05, "noise": 0.004, "improving": True, "converged": False}
    found = Training.of([result(False, gains={"dense": noisy, "one_word": rising})])
    assert found.mark() == "still improving: +5.0 points on one-word answers in the last third"


def test_a_budget_names_its_steps_and_whether_the_start_is_common() -> None:
    one = Training.of([result(), result()])
    assert budget([one]) == "after 300 steps from a common start"
    assert budget([one, Training.of([result(steps=600)])]) == "after 300 to 600 steps from a common start"
    assert budget([one, Training.of([result(start="another")])]) == "after 300 steps from starts that differ"
