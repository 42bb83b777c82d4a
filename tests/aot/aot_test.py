import json
import sys

import pytest
from conftest import GOLDENS

from configs import objaverse_512, re10k_256, re10k_512, re10k_512_finetune
from efficient_lvsm_jax.aot import __main__ as aot
from efficient_lvsm_jax.aot import report, topologies
from efficient_lvsm_jax.aot.hlo import read_program
from efficient_lvsm_jax.aot.training_step import Compiled, question
from efficient_lvsm_jax.cost.chips import CHIPS, GIB, read_topology
from efficient_lvsm_jax.errors import InputError

COMMAND = ["aot", "--config", "configs/re10k_256.py", "--config.data.batch_size=64"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [*COMMAND, *arguments])
    return aot.main()


def test_without_a_compiler_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    for topology, extra in (("v5e:4x4", "tpu-aot"), ("h100:8", "gpu-aot")):
        with pytest.raises(InputError, match=rf"pip install 'efficient-lvsm-jax\[{extra}\]'"):
            run(monkeypatch, "--topology", topology)


def test_an_estimate_needs_no_libtpu_and_answers_by_exit_status(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    path = tmp_path / "figures.json"
    assert run(monkeypatch, "--topology", "v5e:4x4", "--estimate", "--out", str(path)) == 0
    figures = json.loads(path.read_text())
    assert figures["fits"] and figures["devices"] == 16 and not figures["compiled"]
    printed = capsys.readouterr().out
    assert f"{figures['total_bytes'] / GIB:.2f} GiB of 15.75: fits" in printed
    assert "what collectives send is known once the step is compiled" in printed
    arguments = ("--topology", "v5e:4x4", "--estimate", "--memory", "4")
    assert run(monkeypatch, *arguments) == aot.DOES_NOT_FIT
    assert "GiB of 4.00: DOES NOT FIT" in capsys.readouterr().out


def test_figures_that_cannot_be_written_are_one_line(monkeypatch, tmp_path):
    nowhere = tmp_path / "absent" / "figures.json"
    with pytest.raises(InputError, match="absent: cannot be written"):
        run(monkeypatch, "--topology", "v5e:4x4", "--estimate", "--out", str(nowhere))


def test_an_estimate_for_other_devices_than_tpus(monkeypatch, capsys):
    other = ("--estimate", "--devices", "8", "--memory", "80", "--platform", "gpu")
    assert run(monkeypatch, *other) == 0
    printed = capsys.readouterr().out
    assert "8 devices, mesh data:8" in printed and "8 at once a device" in printed


@pytest.mark.parametrize("arguments", [(), ("--estimate", "--devices", "8")])
def test_a_question_without_devices_says_what_is_missing(monkeypatch, arguments):
    with pytest.raises(InputError, match="say --topology v5e:4x4, or, of elvsm estimate, --dev"):
        run(monkeypatch, *arguments)


def test_pictures_that_are_not_whole_patches_are_refused_before_any_is_made():
    config = re10k_256.get_config()
    config.data.size = 250
    with pytest.raises(
        InputError, match=r"data\.size=250: expected a multiple of the patch size 8"
    ):
        question(config, 1)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:4", "v5e:0x4", "v3:4x4", "v5e:4x4x", "", "h100", "h100:0", "h100:2x4x4"]
)
def test_an_impossible_topology_is_an_error(name):
    with pytest.raises(InputError, match="topology"):
        read_topology(name)


def test_a_topology_names_its_chip_and_their_number():
    pod, machine, cluster = map(read_topology, ("v5p:2x2x4", "h100:8", "h100:2x8"))
    assert (pod.chip, pod.devices) == (CHIPS["v5p"], 16)
    assert (machine.chip, machine.devices, machine.shape) == (CHIPS["h100"], 8, (1, 8))
    assert (cluster.devices, cluster.shape) == (16, (2, 8))
    # NVLink within a machine; between two, eight ports of 400 Gbit/s.
    assert (machine.link_rate, cluster.link_rate) == (450e9, 400e9)
    with pytest.raises(InputError, match=r"a machine has at most 8 GPUs.*h100:2x8"):
        read_topology("h100:16")


def test_a_compiled_step_is_told_with_its_memory_collectives_and_kernels():
    asked = question(re10k_256.get_config(), 16)
    expected = asked.estimate("tpu")
    program = read_program((GOLDENS / "tpu_program.txt").read_text())
    compiled = Compiled({"parameters": GIB, "temporaries": 2 * GIB}, program)
    answer = report.report(asked, read_topology("v5e:4x4"), 2 * GIB, expected, compiled)
    printed = "\n".join(report.lines(answer))
    assert "3.00 GiB of 2.00: DOES NOT FIT" in printed
    assert "all-gather               5 x,       0.2 MiB, each device sends 0.1 MiB" in printed
    assert "splash_mha_fwd_residuals x 5" in printed
    assert "gathered outside of loops over layers: 0.0 MiB" in printed


def test_the_least_time_of_a_step_is_that_of_its_products_at_half_a_matrix_unit():
    config = re10k_256.get_config()
    config.losses.perceptual = 0.0
    asked = question(config, 16)
    expected = asked.estimate("tpu")
    bound = report.report(asked, read_topology("v5e:4x4"), 16 * GIB, expected, None)["roofline"]
    executed = asked.flops().executed
    linear, attention = executed.linear / 16 / 197e12, executed.attention / 16 / 197e12
    assert bound["matrix_s"] == pytest.approx(linear)
    assert bound["attention_s"] == pytest.approx(2 * attention)
    assert bound["mfu"] == pytest.approx(
        asked.flops().model.total / 16 / 197e12 / (linear + 2 * attention)
    )


def test_networks_of_losses_cost_time_but_are_no_model_flops():
    config = re10k_256.get_config()
    asked = question(config, 16)
    vgg19 = 3 * 128 * 6 * 51e9  # both pictures and one gradient; 25.5 G multiply-adds a picture
    assert asked.loss_flops() == pytest.approx(vgg19, rel=0.05)
    config.losses.perceptual = 0.0
    without = question(config, 16)
    assert without.loss_flops() == 0
    assert without.flops() == asked.flops()


@pytest.mark.parametrize("config", [re10k_256, re10k_512, re10k_512_finetune, objaverse_512])
def test_presets_are_valid_and_name_their_own_file(config):
    name = config.__name__.replace(".", "/") + ".py"
    assert f"train.py --config {name}" in config.__doc__
    asked = question(config.get_config(), 16)
    assert asked.data.size == (256 if "256" in name else 512)
    assert asked.flops().model.total > 0


def test_a_small_step_compiles_for_a_slice_that_is_not_there(monkeypatch, capsys):
    pytest.importorskip("libtpu", reason="extra tpu-aot")
    small = ("width=128", "layers=2")
    overrides = [f"--config.model.{setting}" for setting in small]
    assert run(monkeypatch, "--topology", "v5e:2x2", *overrides) == 0
    printed = capsys.readouterr().out
    assert "compiled" in printed and "splash_mha_fwd" in printed
    assert "gathered outside of loops over layers: 0.0 MiB" in printed


@pytest.fixture
def gpu_compiler():
    """The compiler for GPUs that are not there."""
    pytest.importorskip("jax_cuda13_plugin", reason="extra gpu-aot")


def answer_of(monkeypatch, tmp_path, *arguments, status=0):
    small = [f"--config.model.{setting}" for setting in ("width=128", "layers=2")]
    file = tmp_path / "figures.json"
    assert run(monkeypatch, *arguments, *small, "--out", str(file)) == status
    return json.loads(file.read_text())


def test_a_small_step_compiles_for_gpus_that_are_not_there(monkeypatch, tmp_path, gpu_compiler):
    answer = answer_of(monkeypatch, tmp_path, "--topology", "h100:2")
    kernels = answer["kernels"]
    assert kernels["cudnn fmhaSoftmax"] == kernels["cudnn fmhaSoftmaxBackward"] == 3 * 2
    assert answer["collectives"]["all-reduce"]["bytes"] > 0
    tight = ("--topology", "h100:2", "--memory", "0.1")
    assert not answer_of(monkeypatch, tmp_path, *tight, status=aot.DOES_NOT_FIT)["fits"]


@pytest.mark.parametrize("program", ["encode", "decode", "append"])
def test_rendering_compiles_for_gpus_that_are_not_there(
    monkeypatch, tmp_path, gpu_compiler, program
):
    question = ("--topology", "h200:1", "--program", program, "--count", "2", "--capacity", "64")
    answer = answer_of(monkeypatch, tmp_path, *question)
    attention = {"encode": 1, "decode": 2, "append": 0}[program] * 2
    assert answer["kernels"].get("cudnn fmhaSoftmax", 0) == attention
    assert (answer["flops"]["model"] > 0) == (program != "append")
    if program == "decode":
        full = answer_of(monkeypatch, tmp_path, *question[:5], "64", *question[6:])
        page = 2 * 2 * 1024 * 64 * 2  # keys and values of two heads of a layer
        more = full["bytes"]["temporaries"] - answer["bytes"]["temporaries"]
        assert more > 30 * page  # what is gathered follows the views in use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--program", "decode", "--count", "2"), "compiled, not estimated: say --topology"),
        (("--topology", "h100:1", "--count", "2"), "--count is for --program encode, decode"),
        (("--topology", "h100:1", "--program", "decode", "--capacity", "1"), "room"),
        (("--topology", "h100:1", "--program", "encode", "--cache", "int3"), "model.cache"),
        (("--topology", "h100:1", "--slots", "2"), "--slots is now --capacity"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(monkeypatch, arguments, message):
    arguments = [*arguments, *(() if "--topology" in arguments else ("--estimate",))]
    if "--topology" not in arguments:
        arguments += ["--devices", "1", "--memory", "8"]
    with pytest.raises(InputError, match=message):
        run(monkeypatch, *arguments)


def test_a_family_without_a_cache_has_no_append(monkeypatch):
    lvsm = "configs/re10k_256_lvsm_decoder_only.py"
    arguments = ("--topology", "h100:1", "--program", "append")
    monkeypatch.setattr(sys, "argv", ["aot", "--config", lvsm, *arguments])
    with pytest.raises(InputError, match="has no cache to which views are added"):
        aot.main()
