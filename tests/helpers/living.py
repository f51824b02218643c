"""How many bytes of tensors are alive, of those that were made while somebody looked."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Living(TorchDispatchMode):
    """Inside ``with`` every storage that an operation returns is noted; ``bytes()`` counts those still there."""

    def __init__(self):
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                reference = StorageWeakRef(storage)
                self.seen[reference.cdata] = (reference, storage.nbytes())
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self.seen.values() if not reference.expired())
