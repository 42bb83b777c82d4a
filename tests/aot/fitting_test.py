"""A step that has no room is refused before it is compiled, with settings that have."""

import re
from pathlib import Path

import jax
import pytest

import configs
import train as trainer
from configs import tiny
from efficient_lvsm_jax.aot import fitting, training_step
from efficient_lvsm_jax.commands import command_line
from efficient_lvsm_jax.cost import memory
from efficient_lvsm_jax.cost.memory import GIB, USABLE
from efficient_lvsm_jax.errors import InputError


def asked(preset, *overrides, devices=1):
    file = f"{Path(configs.__file__).parent / preset}.py"
    argv = ["train.py", f"--config={file}", *overrides]
    config, _ = command_line(argv, usage="", workdir=False, settings=training_step.settings)
    return training_step.question(config, devices)


def refusal(question, bytes_, platform="cpu"):
    with pytest.raises(InputError) as caught:
        fitting.check_memory(question, platform, bytes_)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("preset", "given", "gib"),
    [
        ("re10k_256", (), 16),
        ("re10k_256", (), 80),
        ("re10k_256", ("--config.data.batch_size=24",), 8),
        ("re10k_512", ("--config.model.remat=full",), 24),
        ("re10k_256_lvsm_decoder_only", ("--config.model.remat=none",), 24),
        ("tiny", ("--config.data.batch_size=4096",), 8),
        ("re10k_256", ("--config.data.batch_size=6",), 5),
    ],
)
def test_what_is_named_fits_by_the_same_estimate(preset, given, gib):
    question = asked(preset, *given)
    message = refusal(question, gib * GIB)
    assert f"a device has {gib}.0 GiB; by the estimate --config." in message
    choices = re.findall(r"((?:--config\S+ )+)\(", message)
    assert choices
    for choice in choices:
        fits = asked(preset, *given, *choice.split())
        assert fits.estimate("cpu").total <= USABLE * gib * GIB
        fitting.check_memory(fits, "cpu", gib * GIB)


def test_devices_get_whole_parts_of_what_is_named():
    message = refusal(asked("re10k_256", devices=4), 8 * GIB)
    (scenes,) = re.findall(r"batch_size=(\d+)", message)
    assert int(scenes) % 4 == 0


def test_a_model_that_is_too_large_is_told_so():
    assert "no batch size, model.remat or micro_batches would fit; take a smaller model" in (
        refusal(asked("re10k_256"), GIB)
    )


def test_an_estimate_near_the_memory_only_warns(caplog):
    question = asked("re10k_256", "--config.data.batch_size=8")
    total = question.estimate("gpu").total
    for bytes_ in (0, total):
        fitting.check_memory(question, "gpu", bytes_)
    assert not caplog.records
    fitting.check_memory(question, "gpu", total - 1)
    (record,) = caplog.records
    assert "by an estimate a training step takes" in record.getMessage()
    assert "--config.data.batch_size=4" in record.getMessage()
    fitting.check_memory(question, "gpu", int(total / fitting.SURE) + 1)
    refusal(question, int(total / fitting.SURE) - 1, "gpu")


def test_training_refuses_before_anything_is_compiled(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.batch_size = 2**20
    monkeypatch.setattr(trainer, "first_state", None)
    with pytest.raises(InputError, match=r"a training step takes about .* would fit"):
        trainer.train(config, tmp_path)


def test_running_out_of_memory_names_what_takes_less(tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")

    config = tiny.get_config()
    config.data.update(batch_size=64, scenes=4)
    monkeypatch.setattr(trainer, "first_state", out_of_memory)
    message = r"out of memory \(RESOURCE_EXHAUSTED: .* 5 bytes.\); .*--config.data.batch_size=32 \("
    with pytest.raises(InputError, match=message):
        trainer.train(config, tmp_path)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "a/memory.max"),
        ("0::/a/b", "memory.max"),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes"),
        ("0::/../elsewhere", "memory.max"),
    ],
)
def test_a_cpu_has_what_its_container_has(tmp_path, monkeypatch, line, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("123456\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    own = tmp_path / "self"
    own.write_text(f"{line}\n")
    monkeypatch.setattr(memory, "OWN_GROUP", own)
    assert memory.memory_of(jax.devices("cpu")[0]) == 123456
    (tmp_path / file).write_text("max\n")
    assert memory.memory_of(jax.devices("cpu")[0]) > GIB
