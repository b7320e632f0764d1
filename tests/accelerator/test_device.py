"""The pretend accelerator itself: what the other tests here trust it to do as CUDA does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import fourm_ser
import tests
from tests.accelerator.device import NAME, Pretend


def test_switched_off_it_is_not_there(pretend: Pretend) -> None:
    def state() -> tuple[torch.device | None, int, bool, bool]:
        here = torch.accelerator.current_accelerator(check_available=True)
        return here, torch.accelerator.device_count(), torch.accelerator.is_available(), NAME in AcceleratorRegistry

    assert state() == (None, 0, False, False)
    with pretend.switched_on() as device:
        assert state() == (torch.device(NAME), 1, True, True)
        assert torch.get_device_module(device).is_available()
        assert torch.ones(2, device=device).device == device
    assert state() == (None, 0, False, False)
    assert not torch.ones(2).is_pinned()
    with pytest.raises(RuntimeError, match="Cannot access accelerator device"):
        torch.ones(2).pin_memory()
    weight = nn.Parameter(torch.ones(2))
    torch.autograd.backward(weight.sum())
    assert weight.grad is not None


def test_tensors_of_two_devices_do_not_mix(device: torch.device) -> None:
    there, here = torch.ones(3, device=device), torch.ones(3)
    mixtures: list[Callable[[], Any]] = [
        lambda: there + here,
        lambda: torch.where(there > 0, there, here),
        lambda: torch.cat([there, here]),
        lambda: there.add_(here),
        lambda: here[torch.tensor([0, 2], device=device)],
        lambda: nn.functional.linear(there[None], here[None]),
        lambda: nn.functional.cross_entropy(there[None], torch.tensor([1])),
    ]
    for mix in mixtures:
        with pytest.raises(RuntimeError, match=r"on the same device|same device as"):
            mix()
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a single number goes along
    assert there[torch.tensor([0, 2])].tolist() == [1, 1]  # and indices do


def test_views_share_memory_and_results_grow(device: torch.device) -> None:
    given = torch.arange(12.0, device=device)
    table = given.view(3, 4)
    table.T[1].mul_(10)
    table.unfold(1, 2, 2)[0, 1].zero_()
    given.reshape(2, 6).select(1, 5).add_(100)
    expected = torch.arange(12.0)
    expected[1::4] *= 10
    expected[2:4] = 0
    expected[[5, 11]] += 100
    assert given.tolist() == expected.tolist()
    grown = torch.empty(0, device=device)
    torch.add(given, 1, out=grown)
    assert grown.tolist() == (expected + 1).tolist()
    assert given.resize_(2, 2).tolist() == expected[:4].view(2, 2).tolist()
    assert given.resize_(20).shape == (20,)
    with torch.inference_mode():
        assert not grown[1:].is_inference()  # a view of what is none
        assert (grown[1:] + 1).is_inference()


def test_modules_move_copy_and_are_saved(device: torch.device, tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    weight, values = module.weight, module.weight.tolist()
    module.to(device)
    assert module.weight is weight  # as from the CPU to CUDA: optimizers go on with the same parameters
    assert weight.device == device
    twin = copy.deepcopy(module)
    assert twin.weight.device == device
    assert twin.weight.data_ptr() != weight.data_ptr()
    torch.save(module.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True)["weight"].device == device
    assert torch.load(tmp_path / "state", map_location="cpu", weights_only=True)["weight"].tolist() == values
    assert module.cpu().weight is weight
    assert weight.tolist() == twin.weight.tolist() == values
    with torch.inference_mode():
        assert torch.nn.Parameter(weight).to(device).is_inference()  # so that none may move there that is to train


def waits_of(pretend: Pretend, act: Callable[[], Any]) -> list[str]:
    with pretend.watched() as seen:
        act()
    return [wait.operator for wait in seen.waits]


def test_what_waits_for_the_device_is_seen(pretend: Pretend, device: torch.device) -> None:
    values, mask = torch.arange(6.0, device=device), torch.tensor([True, False] * 3, device=device)
    for act in (
        lambda: values[0].item(),
        lambda: float(values[0]),
        lambda: bool(values[0]),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: print(end=f"{values[0]:.0f}"[:0]),
        lambda: values.nonzero(),
        lambda: values[mask],
        lambda: values[torch.tensor([1, 2])],
        lambda: values.masked_select(mask),
        lambda: values.index_put_((mask,), torch.ones(3, device=device)),
        lambda: torch.unique(values),
        lambda: values.long().bincount(),
        lambda: torch.equal(values, values),
        lambda: values.repeat_interleave(mask.long()),
        lambda: torch.ones(3).to(device),
        lambda: torch.tensor([1.0], device=device),
        lambda: torch.empty(6).copy_(values, non_blocking=True),  # into memory that is not page-locked
        torch.accelerator.synchronize,
    ):
        assert len(waits_of(pretend, act)) == 1


def test_what_does_not_wait_is_not_seen_to(pretend: Pretend, device: torch.device) -> None:
    values, mask = torch.arange(6.0, device=device), torch.tensor([True, False] * 3, device=device)
    layer, event = nn.Linear(6, 6).to(device), torch.Event(device)
    ready = torch.ones(3).pin_memory()

    def act() -> None:
        layer(values.masked_fill(mask, 0.0)).square().mean().backward()
        values[mask] = 0.0
        values[values.long()].repeat_interleave(mask.long(), output_size=3)
        torch.where(mask, values, 0.0).cumsum(0).softmax(0).argmax()
        ready.to(device, non_blocking=True)
        values.to("cpu", non_blocking=True)
        event.record()
        event.query()
        event.synchronize()

    assert waits_of(pretend, act) == []


def test_copies_and_places_are_counted(pretend: Pretend, device: torch.device) -> None:
    with pretend.watched() as seen:
        there = torch.ones(3, 4).to(device, non_blocking=True)
        there.half().cpu()
        there.sum().item()
    assert (seen.there, seen.bytes_there, seen.back, seen.bytes_back) == (1, 48, 1, 24)
    assert seen.runs["aten::_local_scalar_dense"] == 1
    assert [wait.operator for wait in seen.waits] == ["copy to the host", "aten::_local_scalar_dense"]
    for wait in seen.waits:
        call = wait.within(tests)
        assert call is not None
        assert call.function == "test_copies_and_places_are_counted"
        assert "test_device.py" in str(wait)
        assert wait.within(fourm_ser) is None


def test_waits_of_a_backward_pass_are_placed_where_it_began(pretend: Pretend, device: torch.device) -> None:
    weight = nn.Parameter(torch.ones(3, device=device))
    weight.register_hook(lambda gradient: gradient * float(gradient.sum()))  # type: ignore[no-untyped-call]
    with pretend.watched() as seen:
        torch.autograd.backward(weight.sum())
    (wait,) = seen.waits
    assert "test_waits_of_a_backward_pass_are_placed_where_it_began" in {call.function for call in wait.calls}


def test_a_copy_to_the_host_that_nothing_waits_for_arrives_late(pretend: Pretend, device: torch.device) -> None:
    values, event = torch.arange(3.0, device=device), torch.Event(device)
    for arrive in (event.synchronize, torch.accelerator.synchronize, values.sum().item, values.cpu):
        before = values.tolist()
        copied = values.to("cpu", non_blocking=True)
        event.record()
        later = values.to("cpu", non_blocking=True)
        values.add_(1)
        assert copied.is_pinned()
        assert copied.isnan().all()
        arrive()
        assert copied.tolist() == before
        assert later.isnan().all() == (arrive == event.synchronize)  # what began behind the event
    copied = values.to("cpu", non_blocking=True)
    event.record()
    assert [event.query(), event.query()] == [False, True]
    assert copied.tolist() == values.tolist()


def test_page_locked_batches_of_a_loader(device: torch.device) -> None:
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    for workers in (0, 1):
        found = []
        for values, labels in DataLoader(data, batch_size=4, pin_memory=True, num_workers=workers):
            assert values.is_pinned()
            assert labels.is_pinned()
            found += values.to(device, non_blocking=True).tolist()
        assert found == list(range(10))


def test_random_numbers_are_the_cpu_s(device: torch.device) -> None:
    def draws(where: torch.device) -> list[Tensor]:
        torch.manual_seed(3)
        query = torch.linspace(-1, 1, 2 * 4 * 6, device=where).view(1, 2, 4, 6)
        generator = torch.Generator(where).manual_seed(5)
        drawn = [
            nn.functional.dropout(torch.ones(50, device=where), 0.3),
            nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=0.4),
            torch.randn(5, device=where),
            torch.randperm(9, device=where),
            torch.rand(4, device=where, generator=generator),
        ]
        return [value.cpu() for value in drawn]

    for there, here in zip(draws(device), draws(torch.device("cpu")), strict=True):
        torch.testing.assert_close(there, here)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv1d(6, 4, 3, padding=1),
    "convolution without bias": lambda: nn.Conv1d(6, 6, 3, groups=2, bias=False),
    "lstm": lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm without bias": lambda: nn.LSTM(5, 4, bias=False, batch_first=True),
    "attention": lambda: nn.TransformerEncoderLayer(5, 1, 8, dropout=0.0, batch_first=True),
    "batch norm": lambda: nn.BatchNorm1d(6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_gradients_are_the_cpu_s(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    here = LAYERS[name]()
    there = copy.deepcopy(here).to(device)
    found = []
    for layer, where in ((here, torch.device("cpu")), (there, device)):
        given = torch.linspace(-2, 2, 3 * 6 * 5, device=where).view(3, 6, 5).requires_grad_()
        result = layer(given)
        result = result[0] if isinstance(result, tuple) else result
        result.square().sum().backward()
        gradients = [given.grad, *(parameter.grad for parameter in layer.parameters())]
        found.append([result.detach().cpu(), *(value.cpu() for value in gradients if value is not None)])
    for mine, its in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def test_autocast_has_the_operators_of_cuda(device: torch.device) -> None:
    matrix = torch.rand(3, 3, device=device)
    with torch.autocast(device.type, torch.float16):
        half = matrix @ matrix
        assert half.dtype == torch.float16
        assert nn.functional.conv1d(matrix[None], matrix[..., None]).dtype == torch.float16
        assert nn.functional.scaled_dot_product_attention(matrix, matrix, matrix).dtype == torch.float16
        widened: list[Tensor] = [
            half.exp(),
            half.pow(2),
            half.softmax(0),
            half.sum(),
            half.norm(),
            half.norm(dim=1),
            nn.functional.layer_norm(half, (3,)),
            nn.functional.cross_entropy(half, torch.arange(3, device=device)),
            torch.cdist(half, half),
            torch.addcmul(half, matrix, half),
            torch.cat([half, matrix]),
        ]
        assert {result.dtype for result in widened} == {torch.float32}
        kept = [half.relu(), half + half, half.mean(0), half.softmax(0, dtype=torch.float16)]
        assert {result.dtype for result in kept} == {torch.float16}
        assert (matrix.double() @ matrix.double()).dtype == torch.float64
    assert (matrix @ matrix).dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_optimizers_step_as_on_the_cpu(kind: type[torch.optim.Optimizer], fused: bool, device: torch.device) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3).to(where)
        optimizer = kind(layer.parameters(), lr=0.1, fused=fused)  # type: ignore[call-arg]
        scaler = torch.amp.GradScaler(where.type, init_scale=8.0, enabled=where.type != "cpu")
        for _ in range(3):
            optimizer.zero_grad()
            loss = layer(torch.linspace(0, 1, 8, device=where).view(2, 4)).square().sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        states = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(states)
        found.append([parameter.detach().cpu() for parameter in layer.parameters()])
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert all(value.device == where for value in moments if fused or value.dim() > 0)
    for there, here in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(there, here)


def test_a_checkpointed_layer_draws_the_same_again(device: torch.device) -> None:
    layer = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).to(device)
    given = torch.ones(2, 6, device=device, requires_grad=True)
    gradients = []
    for again in (False, True):
        torch.manual_seed(1)
        result = checkpoint(layer, given, use_reentrant=False) if again else layer(given)
        result.sum().backward()
        assert given.grad is not None
        gradients.append(given.grad)
        given.grad = None
    assert torch.equal(*gradients)
