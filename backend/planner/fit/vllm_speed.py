"""vllm_speed: times and throughput of a shape under vLLM; the model of time is `timing`'s. Pure."""

from __future__ import annotations

from backend.planner.fit.candidate import Question
from backend.planner.fit.report import Speed
from backend.planner.fit.shape import Shape
from backend.planner.fit.speeds import between
from backend.planner.fit.stages import cut
from backend.planner.groups import group_link, speed
from backend.planner.shares import Shares, of_ranks
from backend.planner.timing.device_speed import NumberKind
from backend.planner.timing.prediction import predict
from backend.planner.timing.work import RankWork, StageWork, Work
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.vllm_memory import VllmMemory
from kvcache.layout import LayerCache


def vllm_speed(asked: Question, shape: Shape, deployment: VllmDeployment, memory: VllmMemory) -> Speed | None:
    ask = asked.ask
    work = _work(asked, shape, deployment, memory)
    if work is None:
        return None
    tokens = min(asked.context, ask.prompt + ask.answer)
    each = int(memory.concurrency * asked.context / max(1, tokens))
    return predict(
        work,
        prompt=ask.prompt,
        answer=ask.answer,
        context=asked.context,
        users=ask.users,
        most_sequences=max(1, each) * shape.replicas,
        engine="vllm",
    )


def _work(asked: Question, shape: Shape, deployment: VllmDeployment, memory: VllmMemory) -> Work | None:
    """None where the model cannot be cut into these stages here."""
    facts, seats = asked.model.facts, shape.seats[0]
    shares = Shares((1.0,) * shape.tensor, (1.0,) * shape.tensor, "expert" if deployment.expert_parallel else "tensor")
    states = sum(layers.count for layers in asked.model.states)
    state_bytes = sum(layers.count * layers.bytes for layers in asked.model.states)
    stages: list[StageWork] = []
    try:
        parts = cut(facts, facts.parameters * deployment.element, deployment.element, [1.0] * len(seats))
        for seat, part, stage in zip(seats, parts, memory.stages, strict=True):
            machine = asked.cluster.machines[seat.machine]
            ranks = tuple(
                RankWork(
                    share,
                    speed(machine, gpu),
                    weight_bytes=stage.weights,
                    kv_bytes=_token_bytes(share.layers, deployment),
                    element=deployment.element,
                    state_layers=round(states * part.share),
                    state_bytes=int(state_bytes * part.share) // shape.tensor,
                )
                for gpu, share in zip(seat.gpus, of_ranks(part.facts, shares), strict=True)
            )
            stages.append(StageWork(ranks, group_link(machine, seat.gpus)))
    except ValueError:
        return None
    whole = max((part.count for part in facts.experts), default=0)
    return Work(
        tuple(stages),
        facts.hidden,
        between(asked.cluster, seats),
        element=deployment.element,
        number=_number(deployment.packing),
        replicas=shape.replicas,
        experts=whole if deployment.expert_parallel else 0,
    )


def _token_bytes(layers: tuple[LayerCache, ...], deployment: VllmDeployment) -> int:
    return sum(layer.kv_heads * (layer.key_size + layer.stored_values) for layer in layers) * deployment.kv_element


def _number(name: str) -> NumberKind:
    if name.startswith("fp8"):
        return "fp8"
    return "fp4" if name.startswith("nvfp4") else "bf16"
