"""ExecuTorch with XNNPACK, 8 bits, dynamic activations: https://github.com/pytorch/executorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers torch.ops.llama)
from torch import nn

from .torch_gpt2 import Gpt2, load

PROGRAM = "model.pte"
N_EXAMPLE = 8  # tokens of the example that is traced; any number is accepted afterwards


class Attention(nn.Module):
    """ExecuTorch's operators for language models; they write a cache [1, n_positions, heads, head_dim] in place."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        shape = (1, config["n_positions"], config["n_head"], config["n_embd"] // config["n_head"])
        self.register_buffer("key", torch.zeros(shape), persistent=False)
        self.register_buffer("value", torch.zeros(shape), persistent=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        torch.ops.llama.update_cache(key, self.key, start)
        torch.ops.llama.update_cache(value, self.value, start)
        return torch.ops.llama.custom_sdpa(query, self.key, self.value, start, None, 0.0, True)


class LastLogits(nn.Module):
    """Logits after the last of the ids, [1, n_vocab]."""

    def __init__(self, gpt2: Gpt2) -> None:
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids: [1, n]. positions: [n], consecutive."""
        start = positions[0].item()
        torch._check(start >= 0)
        torch._check(start + ids.shape[1] <= self.gpt2.n_positions)
        return self.gpt2.lm_head(self.gpt2.hidden(ids, positions, start)[:, -1])


def convert(source: Path, folder: Path) -> None:
    """XNNPACK's quantizer: int8 weights with a scale a channel, activations rounded at run time."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model = LastLogits(load(source, Attention)).eval()
    n = torch.export.Dim("n", min=1, max=model.gpt2.n_positions - 1)
    example = (torch.zeros(1, N_EXAMPLE, dtype=torch.long), torch.arange(N_EXAMPLE))
    shapes = ({1: n}, {0: n})
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(
        xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model, example, dynamic_shapes=shapes).module(), quantizer)
        prepared(*example)
        quantized = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=shapes)
    edge = to_edge_transform_and_lower(
        quantized,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    program = edge.to_executorch(
        ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    )
    folder.mkdir()
    with (folder / PROGRAM).open("wb") as file:
        program.write_to_file(file)


class Peer:
    """One row: the cache of its operators has one."""

    def __init__(self, folder: Path, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib

        torch.set_num_threads(threads)
        portable_lib._unsafe_reset_threadpool(threads)
        self.program = portable_lib._load_for_executorch(str(folder / PROGRAM))

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        ids, start = prompt, 0
        for _ in range(n_new):
            id_ = int(self._pass(ids, start).argmax())
            note(id_)
            start += len(ids)
            ids = [id_]

    def logits(self, ids: list[int]) -> np.ndarray:
        """The program has the last logits only: one step for each id."""
        return np.stack([self._pass([id_], start).numpy().copy() for start, id_ in enumerate(ids)])

    def _pass(self, ids: list[int], start: int) -> torch.Tensor:
        """[n_vocab]."""
        return self.program.run_method("forward", (torch.tensor([ids]), torch.arange(start, start + len(ids))))[0][0]
