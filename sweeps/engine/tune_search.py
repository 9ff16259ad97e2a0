"""The study's search as Tune asks for one: trials by Tune's own ids, results as it reports them."""

from __future__ import annotations

from typing import Any

from ray.tune.search.searcher import Searcher

from sweeps.search.draws import StudySearch
from sweeps.search.objectives import TOLD


class TuneSearch(Searcher):  # type: ignore[misc]
    """Hands a study's trials to Tune; `num_samples` is to be -1."""

    def __init__(self, search: StudySearch) -> None:
        super().__init__(metric=list(TOLD), mode=["min"] * len(TOLD))
        self._search = search
        self._keys: dict[str, str] = {}  # of the trials that run, by Tune's id

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as the config of `run_trial`; None until a result is in; Searcher.FINISHED after the last."""
        assignment = self._search.next_assignment()
        if assignment == "wait":
            return None
        if assignment == "finished":
            return str(Searcher.FINISHED)
        self._keys[trial_id] = assignment.key
        return assignment.as_config()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass a result on; a crashed trial has none."""
        whole = result is not None and not error and all(metric in result for metric in TOLD)
        values = (result[TOLD[0]], result[TOLD[1]]) if whole and result else None
        self._search.take_result(self._keys.pop(trial_id), values)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Progress reports mean nothing to the search."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state follows from the study and its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state follows from the study and its rows."""
