"""Studies: what is refused, and with which words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_model.errors import InputError
from sweeps.study.problems import InputErrors
from sweeps.study.study import Study, load_study, read_study, shipped_studies
from sweeps.study.yamlfile import parse_yaml

Text = Callable[..., str]


def mistakes(text: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        read_study(text, "s.yaml")
    return caught.value.lines


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_sound(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert set(study.space.kinds()) <= {"sparse", "dense"}


PARTS = [name for name in shipped_studies() if name.startswith("headline-")]


@pytest.mark.parametrize("name", [*PARTS, "ablations"])
def test_a_part_of_the_results_trains_what_it_lists_and_nothing_drawn(name: str) -> None:
    """Every field that varies is given in every entry, so that the sampler has nothing to choose."""
    study = load_study(name)
    params = [study.space.params(entry) for entry in study.search.try_first]
    assert len(params) == study.search.trials
    for chosen in params:
        kind = chosen.get("kind", study.space.kind)
        asked = {entry.path for entry in study.space.entries[kind].values() if entry.is_sampled}
        assert asked == chosen.keys() - {"kind"}
    assert len(study.seeds) >= 2


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_headline_have_the_same_text_and_tokens(name: str) -> None:
    study, first, demo = load_study(name), load_study(PARTS[0]), load_study("quickstart")
    assert (study.corpus, study.tokenizer) == (first.corpus, first.tokenizer)
    for field in ("training.tokens", "model.context", "model.positions", "model.n_layer"):
        assert study.space.corner_values(field) == first.space.corner_values(field)
    (tokens,), (fewer,) = study.space.corner_values("training.tokens"), demo.space.corner_values("training.tokens")
    assert tokens >= 5 * fewer
    assert study.target_loss == 0.15


def test_quickstart_is_a_real_sweep() -> None:
    study = load_study("quickstart")
    assert study.search.trials >= 5
    assert {source.source for source in study.corpus.sources} == {"idioms", "installed:networkx"}
    assert {"model.d_model", "training.fraction", "training.anneal"} <= set(study.space.sampled("sparse"))
    assert "model.d_model" in study.space.sampled("dense")
    assert study.task_sources == load_study("quickstart").task_sources
    assert len(study.task_sources) == 20
    assert study.target_loss == 0.15


def test_a_study_survives_being_stored(study_text: Text) -> None:
    study = read_study(study_text(), "s.yaml")
    assert read_study(study.to_yaml(), "stored") == study


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"nmae": "x"}, "nmae", "did you mean 'name'"),
        ({"name": "../x"}, "name", "'../x'"),
        ({"name": 3}, "name", "3"),
        ({"corpus.sources": []}, "corpus.sources", "at least 1"),
        ({"corpus.heldout": 0.1}, "corpus.heldout", "heldout_fraction"),
        ({"corpus.sources": [{"source": "idioms"}]}, "corpus.sources[0]", "megabytes"),
        ({"corpus.sources": [{"source": "idioms", "megabytes": -1}]}, "corpus.sources[0].megabytes", "-1"),
        ({"tokenizer.vocab_size": 10}, "tokenizer.vocab_size", "257"),
        ({"trial.training.betas": [0.9, 1.5]}, "trial.training.betas", "1.5"),
        ({"tasks": ["else_elif", "nonsense"]}, "tasks", "'nonsense'"),
        ({"tasks": "else_elif"}, "tasks", "'else_elif'; allowed: 'all' or a list"),
        ({"tasks": [1]}, "tasks[0]", "1; allowed: a text"),
        ({"trial": [1]}, "trial", "[1]; allowed: a mapping"),
        ({"search.trials": "many"}, "search.trials", "'many'; allowed: a whole number"),
        ({"search.try_first": {"kind": "dense"}}, "search.try_first", "; allowed: a list"),
        ({"tasks": ["else_elif", "else_elif"]}, "tasks", "each once"),
        ({"search.trials": 0}, "search.trials", "0"),
        ({"search.sampler": "grid"}, "search.sampler", "'tpe'"),
        ({"seeds": [1, 1]}, "seeds", "each once"),
        ({"seeds": [-1]}, "seeds", "-1"),
        ({"seeds": [2**70]}, "seeds", "2**63"),
        ({"target_losses": [0.1, math.nan]}, "target_losses[1]", "finite"),
        ({"trial.training.lr": math.inf}, "trial.training.lr", "finite"),
        ({"trial.training.lr": {"uniform": [0.1, 10**400]}}, "trial.training.lr", "two numbers"),
        ({"trial.model.d_model": 10**9}, "trial.model.d_model", "1048576"),
        ({"min_tasks_solved": 99}, "min_tasks_solved", "99"),
        ({"resources.gpus_per_worker": 1.5}, "resources.gpus_per_worker", "1.5"),
        ({"resources": {"gpus_per_worker": 0.5, "workers": 2}}, "resources", "with one worker"),
        ({"resources.gpus_per_pruning_task": 2}, "resources.gpus_per_pruning_task", "2"),
        (
            {"resources.gpus_per_pruning_task": 0.5, "resources.pruning_resource": "pruner"},
            "resources",
            "'pruner' and gpus_per_pruning_task 0.5; allowed: one of the two",
        ),
        ({"corpus.sources": [{"source": "https://u:word@h/x.py"}]}, "corpus.sources[0].source", "https://***@h"),
        ({"search.try_first": [{"kind": "dense"}] * 99}, "search.try_first", "99 trials"),
        ({"target_losses": [0.1, 0]}, "target_losses", "0"),
        ({"pruning.target_loss": 0.1}, "pruning", "target_losses"),
        ({"pruning.lr": 0}, "pruning.lr", "0"),
        ({"resources.workers": 0}, "resources.workers", "0"),
        ({"resources.workers": 3}, "trial.training.batch_size", "not a multiple of the 3"),
        ({"trial.kind": "sparce"}, "trial.kind", "'sparce'"),
        ({"trial.optimizer": {}}, "trial.optimizer", "unknown key"),
        ({"trial.model.layers": 2}, "trial.model.layers", "unknown key"),
        ({"trial.dense.training.warmpu": 2}, "trial.dense.training.warmpu", "warmup"),
        ({"trial.model.vocab_size": 100}, "trial.model.vocab_size", "tokenizer.vocab_size"),
        ({"trial.training.seed": 1}, "trial.training.seed", "seeds"),
        ({"trial.sparse.training.fraction": 0}, "trial.sparse.training.fraction", "0"),
        ({"trial.sparse.training.fraction": {"uniform": [0.5, 1.5]}}, "trial.sparse.training.fraction", "1.5"),
        ({"trial.sparse.training.fraction": {"loguniform": [0, 1]}}, "trial.sparse.training.fraction", "above 0"),
        ({"trial.sparse.training.fraction": {"uniform": [0.5, 0.1]}}, "trial.sparse.training.fraction", "low must be"),
        ({"trial.sparse.training.fraction": {"normal": [0, 1]}}, "trial.sparse.training.fraction", "loguniform"),
        ({"trial.dense.training.fraction": 0.5}, "trial.dense.training.fraction", "dense trials have none"),
        ({"trial.training.fraction": 0.5}, "trial.training.fraction", "under trial.sparse.training"),
        ({"trial.model.d_model": {"choice": [32, 40]}}, "trial.model", "40 is not divisible by d_head 16"),
        ({"trial.model.d_model": {"int": [32, 64, 8]}}, "trial.model", "40 is not divisible by d_head 16"),
        ({"trial.model.d_model": {"choice": []}}, "trial.model.d_model", "at least one"),
        ({"trial.model.n_layer": {"int": [1.5, 3]}}, "trial.model.n_layer", "whole numbers"),
        ({"trial.training.min_alive": 30}, "trial.sparse.training.fraction", "min_alive 30"),
        ({"search.try_first": [{"kind": "dense", "model": {"d_model": 48}}]}, "search.try_first[0]", "one of 32, 64"),
        ({"search.try_first": [{"kind": "dense", "training": {"anneal": 0.5}}]}, "search.try_first[0]", "anneal"),
        ({"search.try_first": [{"model": {"d_model": 32}}]}, "search.try_first[0]", "kind"),
        ({"search.try_first": [{"kind": "dense", "model": {"n_layer": 2}}]}, "search.try_first[0]", "fixes it at 1"),
    ],
)
def test_one_mistake_is_one_line(study_text: Text, change: dict[str, Any], where: str, words: str) -> None:
    (line,) = mistakes(study_text(change))
    assert line.startswith(f"s.yaml: {where}: ")
    assert words in line


def test_ten_mistakes_are_ten_lines(study_text: Text, ten_mistakes: dict[str, Any]) -> None:
    lines = mistakes(study_text(ten_mistakes))
    assert len(lines) == len(set(lines)) == 10
    paths = {line.split(": ")[1] for line in lines}
    assert paths == set(ten_mistakes) - {"trial.model.d_model"} | {"trial.model"}


def test_yaml_traps() -> None:
    assert parse_yaml("a: 1e-3", "s")["a"] == 1e-3
    for text, words in (
        ("a: 1\na: 2", "line 2 key 'a' is there twice"),
        ("a: [1", "line"),
        ("a: 2020-99-99", "month must be"),
        ("a: !!bool abc", "'abc'"),
        ("[" * 3000, "cannot be read|not YAML"),
        ("- 1", "a mapping is expected"),
        ("1: 2", "not a word"),
        ("a: !!python/object:os.system x", "line 1"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            parse_yaml(text, "s.yaml")
        assert "\n" not in str(caught.value)


def test_missing_study_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="quickstart"):
        load_study("nowhere.yaml")


class Draws:
    """A sampler that always takes the lowest, or the highest, value."""

    def __init__(self, highest: bool) -> None:
        self.highest, self.names = highest, list[str]()

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.names.append(name)
        return choices[-1 if self.highest else 0]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.names.append(name)
        return high if self.highest else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        self.names.append(name)
        return high if self.highest else low


def drawn(study: Study, sampler: Any) -> dict[str, Any]:
    from sweeps.study.space import suggest

    found: dict[str, Any] = {}

    class Recorder:
        def __getattr__(self, kind: str) -> Any:
            def draw(name: str, *args: Any, **kwargs: Any) -> Any:
                found[name] = getattr(sampler, kind)(name, *args, **kwargs)
                return found[name]

            return draw

    suggest(study.space, Recorder())  # type: ignore[arg-type]
    return found


def test_conditional_spaces(study_text: Text) -> None:
    study = read_study(study_text(), "s.yaml")
    sparse, dense = drawn(study, Draws(highest=False)), drawn(study, Draws(highest=True))
    assert set(sparse) == {
        "kind", "model.d_model", "training.lr", "sparse.training.fraction", "sparse.training.anneal"
    }  # fmt: skip
    assert set(dense) == {"kind", "model.d_model", "training.lr"}
    config = study.space.config(sparse, seed=7)
    assert (config.kind, config.model.d_model, config.training.fraction) == ("sparse", 32, 0.05)
    assert (config.training.seed, config.model.vocab_size) == (7, 400)
    config = study.space.config(dense, seed=0)
    assert (config.kind, config.training.fraction, config.model.activation_fraction) == ("dense", 1, 1)
    assert config.training.warmup == 0.05


def test_random_draws_stay_inside_the_space(study_text: Text) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = read_study(study_text({"trial.model.n_layer": {"int": [1, 5, 2]}}), "s.yaml")
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    layers, fractions = set(), []
    for _ in range(200):
        config = study.space.config(drawn(study, source.ask()), seed=0)
        layers.add(config.model.n_layer)
        if config.kind == "sparse":
            assert 0.05 <= config.training.fraction <= 0.5
            fractions.append(math.log(config.training.fraction))
    assert layers == {1, 3, 5}
    # Half of a log-uniform range lies below its geometric mean.
    below = sum(x < math.log(0.05 * 0.5) / 2 for x in fractions)
    assert 0.35 < below / len(fractions) < 0.65


def test_trial_keys_follow_the_configuration(study_text: Text) -> None:
    space = read_study(study_text(), "s.yaml").space
    one = space.config({"kind": "dense", "model.d_model": 32, "training.lr": 0.01}, seed=0)
    same = space.config({"training.lr": 0.01, "model.d_model": 32, "kind": "dense"}, seed=0)
    other = space.config({"kind": "dense", "model.d_model": 32, "training.lr": 0.01}, seed=1)
    assert one.key(3) == same.key(3) != other.key(3)
    assert one.key(3)[1:6] == "00003"


def test_a_local_storage_is_meant_from_where_the_command_was_given(
    study_text: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = read_study(study_text({"storage": "./here"}), "tiny.yaml")
    monkeypatch.chdir("/")  # a worker's directory is another
    assert study.root == str(tmp_path / "here" / "tiny")
    assert read_study(study_text(), "tiny.yaml", "s3://bucket/x").root == "s3://bucket/x/tiny"


def test_tasks_in_files_stand_beside_those_of_the_table(study_text: Text, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt_a": "for x", "answer_a": " in", "prompt_b": "if x", "answer_b": " =="}))
    study = read_study(study_text({"tasks": ["var_if", str(path)]}), "s")
    assert study.task_sources == ("var_if", str(path))
    for tasks, said in (
        ([str(path), str(path)], "each once"),
        ([str(tmp_path / "other.jsonl")], "does not exist"),
        ([str(tmp_path / "var_if.jsonl")], "is in the table already"),
    ):
        with pytest.raises(InputError, match=said):
            read_study(study_text({"tasks": tasks}), "s")
    path.write_text("{}")
    with pytest.raises(InputError, match=rf"s: tasks\[0\]: {path}:1: prompt_a is missing"):
        read_study(study_text({"tasks": [str(path)]}), "s")


def test_a_study_file_is_utf8_with_a_mark_or_without(study_text: Text, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    text = study_text()
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert load_study(str(path)).name == read_study(text, "x").name
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match=r"s\.yaml: not a text file in UTF-8: .* begins as UTF-16 does"):
        load_study(str(path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)),
            "100,000 values",
        ),
        ("a: &a {b: *a}\n", "an alias within what it stands for"),
        ("a: [" + "[" * 1000, "cannot be read"),
    ],
)
def test_alias_bombs_end_at_once(text: str, why: str) -> None:
    began = time.process_time()
    with pytest.raises(InputError, match=why) as caught:
        read_study(text, "s")
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 1


def test_aliases_are_read(study_text: Callable[..., str]) -> None:
    text = study_text().replace("name: tiny", "name: &n tiny\nstorage: *n")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("storage: /"))
    assert read_study(text, "s").storage.endswith("/tiny")
