"""Mixtral: Llama's network with a mixture of experts in place of the MLP.

Source: Jiang et al. 2024, arXiv 2401.04088.
"""

from __future__ import annotations

from typing import ClassVar

from marlin import _C
from marlin.config import ModelConfig
from marlin.models import llama
from marlin.models.base import Run, Source
from marlin.models.moe import MIXTRAL, MoE, Names


class Layer(llama.Layer):
    """A decoder layer whose MLP is a mixture of experts, in the layers that have one."""

    experts: ClassVar[str] = "block_sparse_moe"  # what the mixture is called within the layer
    names: ClassVar[Names] = MIXTRAL

    def build_mlp(self, config: ModelConfig, source: Source, index: int) -> None:
        """The weights of `mlp`."""
        assert config.experts is not None
        self.moe: MoE | None = None
        if config.experts.sparse[index]:
            self.moe = MoE(source, f"{self.name}.{self.experts}", config, self.names)
        else:
            super().build_mlp(config, source, index)

    def mlp(self, h: _C.Tensor, run: Run, shares: bool = False) -> _C.Tensor | _C.Shares:
        """h + mixture(norm(h)), or MLP in a dense layer."""
        if self.moe is None:
            return super().mlp(h, run, shares)
        return self.moe(h, norm=self.mlp_norm, dtype=run.dtype, positions=run.positions, shares=shares)


class Model(llama.Model):
    """MixtralForCausalLM."""

    layer: ClassVar[type[llama.Layer]] = Layer
