# SPDX-License-Identifier: Apache-2.0
"""PyTorch beside the server, with the safetensors library between the two: checkpoints there and back, and training of
BatchNorm layers step by step (y, running statistics, gradients, parameters)."""
import json

import foreign
from foreign import files, harness

torch, safetensors_torch = foreign.require("torch", "safetensors.torch")
nn = torch.nn
torch.set_num_threads(1)

STEPS = 5


def post(client, path, tensors, **fields):
    """A call with the library's file of the tensors; (tensors, other fields) of its reply."""
    body = safetensors_torch.save({k: v.detach().contiguous() for k, v in tensors.items()},
                                  {k: json.dumps(v) for k, v in fields.items()})
    reply = client.post(path, body, {"Content-Type": files.SAFETENSORS})
    assert reply.status == 200 and reply.headers["content-type"] == files.SAFETENSORS, reply
    size = int.from_bytes(reply.body[:8], "little")
    texts = json.loads(reply.body[8:8 + size]).get("__metadata__", {})
    return safetensors_torch.load(reply.body), {k: json.loads(v) for k, v in texts.items()}


def put_snapshot(client, tensors):
    return client.ok("PUT", "/v1/snapshot", safetensors_torch.save(tensors), {"Content-Type": files.SAFETENSORS})


def get_snapshot(client, prefix):
    reply = client.get("/v1/snapshot?prefix=" + prefix, {"Accept": files.SAFETENSORS})
    assert reply.status == 200, reply
    return safetensors_torch.load(reply.body)


def same(got, want):
    """Equal tensors, in the type of the wanted ones, whose every value the server's f64 holds."""
    assert set(got) == set(want), (sorted(got), sorted(want))
    for name, value in want.items():
        assert torch.equal(got[name].to(value.dtype), value), name


def near(got, want, tolerance, what):
    torch.testing.assert_close(torch.as_tensor(got, dtype=torch.float64), want.detach().double(), rtol=tolerance,
                               atol=tolerance, msg=lambda text: f"{what}: {text}")


# ---- checkpoints

class Net(nn.Module):
    """Layers of both kinds, nested, with and without parameters of their own, and others around them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False))])
        self.head = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5))

    def forward(self, x):
        x = self.blocks[0](self.stem(x))
        return self.head(x.mean((2, 3)))


NORMS = {"net.stem.1", "net.blocks.0.1", "net.head.1"}


def trained(seed=3):
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(6, 3, 9, 9)).square().mean().backward()
        optimizer.step()
    return net.eval()


def named(net):
    return {"net." + key: value for key, value in net.state_dict().items()}


def test_a_checkpoint_goes_in_as_it_is_and_comes_back():
    client, net = harness.shared().api(), trained()
    checkpoint = named(net)
    reply = put_snapshot(client, checkpoint)
    assert set(reply["layers"]) == NORMS, reply
    others = {k for k in checkpoint if k.rsplit(".", 1)[0] not in NORMS}
    assert set(reply["ignored"]) == others and "net.stem.0.weight" in others, reply["ignored"]
    back = get_snapshot(client, "net.")
    same(back, {k: v for k, v in checkpoint.items() if k not in others})
    assert back["net.stem.1.num_batches_tracked"].item() == 3 and back["net.stem.1.running_var"].dtype == torch.float64
    fresh = Net().eval()
    state = {**checkpoint, **back}
    fresh.load_state_dict({k[len("net."):]: v for k, v in state.items()}, strict=True)
    same(named(fresh), checkpoint)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(fresh(x), net(x)), "the loaded network computes something else"


def test_a_loaded_layer_has_its_configuration():
    client = harness.shared().api()
    put_snapshot(client, named(trained()))
    for name in NORMS:
        config = client.ok("GET", "/v1/layers/" + name)["layer"]
        assert (config["convention"], config["affine"]) == ("pytorch", name != "net.blocks.0.1"), config


def test_layers_alone_load_strictly():
    client = harness.shared().api()
    norms = nn.ModuleDict({"one": nn.BatchNorm1d(4), "two": nn.BatchNorm2d(3)})
    norms["one"](torch.randn(8, 4))
    norms["two"](torch.randn(2, 3, 5, 5))
    with torch.no_grad():
        norms["one"].weight.copy_(torch.tensor([0.1, -2, 3e-30, 4e30]))
    put_snapshot(client, {"alone." + k: v for k, v in norms.state_dict().items()})
    fresh = nn.ModuleDict({"one": nn.BatchNorm1d(4), "two": nn.BatchNorm2d(3)})
    back = {k[len("alone."):]: v for k, v in get_snapshot(client, "alone.").items()}
    fresh.load_state_dict(back, strict=True)
    same(fresh.state_dict(), norms.state_dict())


def test_what_the_server_has_trained_loads_into_pytorch():
    client, path = foreign.create("made.bn", num_features=6)
    client.ok("PATCH", path + "/state", {"gamma": [0.5, 1, 1.5, 2, 2.5, 3], "beta": [1, 0, -1, 2, 0.25, 0]})
    x = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    post(client, path + "/train-forward", {"x": x})
    module = nn.ModuleDict({"made": nn.ModuleDict({"bn": nn.BatchNorm2d(6)})})
    module.load_state_dict(get_snapshot(client, "made."), strict=True)
    module.eval()
    got, _ = post(client, path + "/inference", {"x": x})
    near(got["y"], module["made"]["bn"](x), 2e-6, "y")
    assert module["made"]["bn"].num_batches_tracked.item() == 1


@harness.rows([(str(dtype).rsplit(".", 1)[-1], dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)])
def test_checkpoints_of_other_types(dtype):
    client, bn = harness.shared().api(), nn.BatchNorm1d(4)
    bn(torch.randn(8, 4))
    state = {"typed.bn." + k: v.to(dtype) if v.is_floating_point() else v for k, v in bn.state_dict().items()}
    assert put_snapshot(client, state)["ignored"] == []
    same(get_snapshot(client, "typed."), state)


# ---- training step by step

MODULES = {
    "BatchNorm1d": (nn.BatchNorm1d, (16, 5)),
    "BatchNorm1d of sequences": (nn.BatchNorm1d, (4, 5, 9)),
    "BatchNorm2d": (nn.BatchNorm2d, (3, 5, 6, 7)),
    "BatchNorm3d": (nn.BatchNorm3d, (2, 5, 3, 4, 2)),
}
SETTINGS = [("defaults", {}), ("momentum 0.3, eps 1e-3", {"momentum": 0.3, "eps": 1e-3}),
            ("cumulative", {"momentum": None}), ("not affine", {"affine": False}),
            ("not tracking", {"track_running_stats": False})]
TYPES = [("f32", torch.float32, 2e-6), ("f64", torch.float64, 1e-13)]
TRAININGS = [(f"{kind}, {title}, {dtype}", kind, settings, dtype, of_torch, tolerance)
             for kind in MODULES for title, settings in SETTINGS for dtype, of_torch, tolerance in TYPES]


def twins(kind, settings, dtype, of_torch):
    """A module, and a layer with the same configuration and parameters: (module, client, path, shape)."""
    make, shape = MODULES[kind]
    module = make(shape[1], **settings).to(of_torch)
    client, path = foreign.create("twin", num_features=shape[1], dtype=dtype, **settings)
    if module.affine:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            module.weight.copy_(torch.randn(shape[1], generator=generator))
            module.bias.copy_(torch.randn(shape[1], generator=generator))
        client.ok("PATCH", path + "/state", {"gamma": module.weight.tolist(), "beta": module.bias.tolist()})
    return module, client, path, shape


def same_state(client, path, module, tolerance):
    state = client.state(path)
    for key, value in (("gamma", module.weight), ("beta", module.bias), ("running_mean", module.running_mean),
                       ("running_var", module.running_var)):
        if value is None:
            assert state[key] is None, (key, state[key])
        else:
            near(state[key], value, tolerance, key)
    if module.track_running_stats:
        assert state["num_batches_tracked"] == module.num_batches_tracked.item()


@harness.rows(TRAININGS)
def test_training(kind, settings, dtype, of_torch, tolerance):
    """Several steps of SGD on both sides, each from the state that its own steps have led to."""
    module, client, path, shape = twins(kind, settings, dtype, of_torch)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.01) if module.affine else None
    step = {"step": {"lr": 0.1, "weight_decay": 0.01}} if module.affine else {}
    generator = torch.Generator().manual_seed(7)
    for i in range(STEPS):
        x = (torch.randn(shape, generator=generator, dtype=torch.float64) * (i + 1) + i).to(of_torch).requires_grad_()
        dout = torch.randn(shape, generator=generator, dtype=torch.float64).to(of_torch)
        y = module(x)
        module.zero_grad()
        y.backward(dout)
        forward, fields = post(client, path + "/train-forward", {"x": x}, cache=True)
        assert forward["y"].dtype == of_torch and fields["count"] == x.numel() // shape[1], fields
        near(forward["y"], y, tolerance, f"y of step {i}")
        got, _ = post(client, path + "/backward", {"dout": dout}, cache=fields["cache"], **step)
        near(got["dx"], x.grad, tolerance, f"dx of step {i}")
        if module.affine:
            near(got["dgamma"], module.weight.grad, 10 * tolerance, f"dgamma of step {i}")
            near(got["dbeta"], module.bias.grad, 10 * tolerance, f"dbeta of step {i}")
            optimizer.step()
        same_state(client, path, module, 10 * tolerance)


@harness.rows(TRAININGS)
def test_evaluation(kind, settings, dtype, of_torch, tolerance):
    """Inference and its gradient: the running statistics where there are such, the batch's own where not."""
    module, client, path, shape = twins(kind, settings, dtype, of_torch)
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(of_torch)
    dout = torch.randn(shape, generator=generator, dtype=torch.float64).to(of_torch)
    module(x * 2 + 1)
    post(client, path + "/train-forward", {"x": x * 2 + 1})
    module.eval()
    x.requires_grad_()
    y = module(x)
    y.backward(dout)
    got, _ = post(client, path + "/inference", {"x": x})
    near(got["y"], y, tolerance, "y")
    mode = "inference" if module.track_running_stats else "train"
    got, _ = post(client, path + "/backward", {"dout": dout, "x": x}, mode=mode)
    near(got["dx"], x.grad, tolerance, "dx")
    if module.affine:
        near(got["dgamma"], module.weight.grad, 10 * tolerance, "dgamma")
        near(got["dbeta"], module.bias.grad, 10 * tolerance, "dbeta")


def test_residual_block():
    """relu(bn(x) + residual) and its three gradients."""
    module, client, path, shape = twins("BatchNorm2d", {}, "f64", torch.float64)
    generator = torch.Generator().manual_seed(13)
    x, residual, dout = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    residual.requires_grad_()
    y = torch.relu(module(x) + residual)
    y.backward(dout)
    forward, fields = post(client, path + "/train-forward", {"x": x, "residual": residual}, activation="relu",
                           cache=True)
    near(forward["y"], y, 1e-13, "y")
    got, _ = post(client, path + "/backward", {"dout": dout}, cache=fields["cache"])
    near(got["dx"], x.grad, 1e-13, "dx")
    near(got["dresidual"], residual.grad, 0, "dresidual")
    near(got["dgamma"], module.weight.grad, 1e-12, "dgamma")


def test_channels_last_memory():
    """The bytes of a channels_last tensor as they lie, with the channels on the last axis."""
    module, client, path, shape = twins("BatchNorm2d", {}, "f32", torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(17)).to(memory_format=torch.channels_last)
    y = module(x)
    got, _ = post(client, path + "/train-forward", {"x": x.permute(0, 2, 3, 1)}, channel_axis=-1)
    near(got["y"].permute(0, 3, 1, 2), y, 2e-6, "y")
    same_state(client, path, module, 2e-6)


@harness.rows([("f16", torch.float16, 2 ** -10), ("bf16", torch.bfloat16, 2 ** -7)])
def test_half_precision_tensors(dtype, unit):
    """Computed as f32 from the values that the halves are, and rounded once."""
    module, client, path, shape = twins("BatchNorm2d", {}, "f32", torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(19)).to(dtype)
    got, _ = post(client, path + "/train-forward", {"x": x})
    assert got["y"].dtype == dtype
    near(got["y"], module(x.float()), unit, "y")
    same_state(client, path, module, 2e-6)


if __name__ == "__main__":
    harness.main()
