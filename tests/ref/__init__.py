"""Plain references, one module a kernel family, named as in csrc/ops. None imports marlin._C."""
