import collections

from conftest import GOLDENS

from efficient_lvsm_jax.aot.hlo import arrays_of, read_program

# What libtpu made of five layers of splash attention with weights split over fsdp:4 (jax 0.10.2).
RECORDED = (GOLDENS / "tpu_program.txt").read_text()
LAYERS = 5


def test_collectives_of_a_recorded_step_are_found_with_sizes_and_trip_counts():
    program = read_program(RECORDED)
    found = {c.kind: (c.bytes, c.times, c.devices) for c in program.collectives}
    assert found == {
        "all-gather": (128 * 128 * 2, LAYERS, 4),  # one layer's weights at a time
        "reduce-scatter": (128 * 128 * 2, LAYERS, 4),  # its gradient
        "all-reduce": (4, 1, 4),  # the loss
    }
    assert program.unknown_loops == 0


def test_bytes_over_a_ring():
    sent = {c.kind: c.sent_bytes for c in read_program(RECORDED).collectives}
    assert sent["all-gather"] == LAYERS * 128 * 128 * 2 * 3 / 4
    assert sent["all-reduce"] == 2 * 4 * 3 / 4


def test_kernels_of_a_recorded_step_are_found_by_name():
    assert {(k.name, k.times) for k in read_program(RECORDED).kernels} == {
        ("splash_mha_fwd_residuals", LAYERS),
        ("splash_mha_dkv_no_residuals", LAYERS),
        ("splash_mha_dq_no_residuals", LAYERS),
    }


def test_largest_arrays_count_the_padding_of_their_layout():
    array, _ = read_program(RECORDED, largest=1).arrays[0]
    assert (array.text, array.padded_bytes) == ("f32[128,128]", 128 * 128 * 4)
    (narrow,) = arrays_of("bf16[2,12,1000,64]{3,2,1,0:T(8,128)(2,1)}")
    assert narrow.bytes == 2 * 12 * 1000 * 64 * 2
    assert narrow.padded_bytes == 2 * 12 * 1000 * 128 * 2  # 64 channels take 128 lanes
    (turned,) = arrays_of("bf16[2,12,1000,64]{2,3,1,0:T(8,128)(2,1)}")
    assert turned.padded_bytes == 2 * 12 * 1024 * 64 * 2


def test_arrays_outside_of_main_memory_are_known():
    fast, slow = arrays_of("(f32[8]{0:T(128)S(1)}, pred[]{:T(512)})")
    assert (fast.in_hbm, slow.in_hbm) == (False, True)
    assert (fast.bytes, slow.bytes) == (32, 1)


LOOP = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %r = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]) parameter(0)
  ROOT %done = pred[] custom-call(%q), custom_call_target="Mystery"
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %w = (s32[], f32[8]) while(%a), condition=%condition, body=%bodyATTRIBUTES
}
"""


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    program = read_program(LOOP.replace("ATTRIBUTES", ""))
    assert program.unknown_loops == 1
    assert [(c.times, c.devices) for c in program.collectives] == [(1, 4)]


def test_a_loop_that_says_its_length_is_believed():
    said = ', backend_config={"known_trip_count":{"n":"7"}}'
    program = read_program(LOOP.replace("ATTRIBUTES", said))
    assert program.unknown_loops == 0
    assert [c.times for c in program.collectives] == [7]


def test_a_collective_printed_in_parts_counts_once():
    part = "  %r.2 = f32[8]{0} all-reduce(%r), channel_id=1, replica_groups=[2,4]<=[8]\n  ROOT %t"
    program = read_program(LOOP.replace("ATTRIBUTES", "").replace("  ROOT %t", part))
    assert len(program.collectives) == 1


# What XLA made of five layers of cuDNN attention with weights split over fsdp:4, for H100s that
# were not there (jax 0.11.2).
FOR_GPUS = (GOLDENS / "gpu_program.txt").read_text()


def test_collectives_that_run_beside_other_work_on_gpus_are_found():
    program = read_program(FOR_GPUS)
    found = {c.kind: (c.bytes, c.times, c.devices) for c in program.collectives}
    layer = 128 * 128 * 2
    assert found == {"all-gather": (layer, LAYERS, 4), "reduce-scatter": (layer, LAYERS, 4)}
    assert program.unknown_loops == 0


def test_kernels_of_gpus_are_found_by_whose_they_are():
    times = collections.Counter()
    for kernel in read_program(FOR_GPUS).kernels:
        times[kernel.name] += kernel.times
    assert times == {
        "cudnn fmhaSoftmax": LAYERS,
        "cudnn fmhaSoftmaxBackward": LAYERS,
        "triton gemm": 3 * LAYERS,
    }


def test_cublas_calls_are_found():
    call = '  %g = f32[8]{0} custom-call(%a), custom_call_target="__cublas$lt$matmul"\n  ROOT %w'
    program = read_program(LOOP.replace("ATTRIBUTES", "").replace("  ROOT %w", call))
    assert [kernel.name for kernel in program.kernels] == ["cublas lt matmul"]


def test_what_begins_an_asynchronous_operation_is_not_counted_as_what_it_reads():
    start = "  %s = ((f32[9]{0}), f32[8]{0}) fusion-start(%a), calls=%none\n  ROOT %w"
    program = read_program(LOOP.replace("ATTRIBUTES", "").replace("  ROOT %w", start))
    assert "f32[9]" not in [array.text for array, _ in program.arrays]
