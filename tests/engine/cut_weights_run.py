"""The training program with weights cut as ZeRO cuts them, here also on CPU and in eager mode.

Arguments are the program's.
"""

from __future__ import annotations

from libai_ext.engine import cli as entry
from libai_ext.startup import start


def main() -> None:
    args = entry.parse_args(__doc__)
    start()
    import oneflow as flow

    from libai_ext.engine.sharding import gather_on_use
    from projects.MAE.run import TaskTrainer, run

    whole, part = flow.sbp.broadcast, flow.sbp.split(0)

    def cut(sbp):
        """What OptimizerPlacementOptimizationPass makes of it."""
        if all(axis == whole for axis in sbp):
            return (*sbp[:-1], part)
        return tuple(sbp[1 - k] if axis == whole else axis for k, axis in enumerate(sbp))

    class CutWeights(TaskTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            gather_on_use(model)
            tensors = [t for t in model.parameters() if t.shape[0] % 2 == 0]
            for tensor in tensors:
                tensor.data = tensor.data.to_global(sbp=cut(tensor.sbp))
            print(f"{len(tensors)} of {len(list(model.parameters()))} weights are cut", flush=True)
            return model

    import projects.MAE.run as program

    program.TaskTrainer = CutWeights
    run(args)


if __name__ == "__main__":
    entry.run(main)
