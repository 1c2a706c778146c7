"""Every argument of every op is obeyed by every provider.

Kernels registered through the stable ABI are boxed: a C++ signature that differs from the schema reads
nonsense without an error, and an argument that a kernel ignores passes every test that leaves it at its usual
value. So each argument is changed on its own, and the result must be the reference's with the same change.
"""

import inspect
from typing import Any

import pytest
import torch

from ops.parity import check_gradients, outputs
from slowfast_kernels import backends, ops, use_backend
from slowfast_kernels.ops._cases import Draw, call_of, contracts_of, op_names, refused_of
from slowfast_kernels.ops._registration import OPS, RecordCalls
from slowfast_kernels.precision import fp32_precision
from slowfast_kernels.testing import (
    PROVIDERS,
    assert_close,
    assert_no_worse,
    provider_device,
    to_float64,
    with_gradients,
)

# arguments that cannot change a result, and why
EXEMPT: dict[str, dict[str, str]] = {}

CONTRACTS = [(op, kind) for op in op_names() for kind in contracts_of(op)]
each_contract = pytest.mark.parametrize("op, kind", CONTRACTS)


def name_of(value):
    return str(value).removeprefix("torch.")


def call(op, arguments):
    return outputs(getattr(ops, op)(**fresh(arguments)))


def fresh(arguments):
    """The arguments with tensors of their own, so that an op that writes into one spoils no other call."""
    copies = {}

    def copy(x):
        base = x._base if x._base is not None else x
        if id(base) not in copies:
            copies[id(base)] = base.clone()
        return (
            copies[id(base)].as_strided(x.shape, x.stride(), x.storage_offset())
            if base is not x
            else copies[id(base)]
        )

    return {k: copy(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def variants(op, kind, dtype=torch.float32, device="cpu"):
    contract = contracts_of(op)[kind](Draw(seed=11, dtype=dtype, device=device))
    yield "as it is", dict(contract.base)
    for name, changes in contract.changes.items():
        for i, change in enumerate(changes):
            yield f"{name} #{i}", contract.base | change


def differ(a, b):
    """Results of two calls: another shape or type, or other values by far more than rounding."""
    if len(a) != len(b) or any((x.shape, x.dtype) != (y.shape, y.dtype) for x, y in zip(a, b, strict=True)):
        return True
    return any(
        ((x.double() - y.double()).norm() > 1e-3 * x.double().norm()).item()
        if x.is_floating_point()
        else not torch.equal(x, y)
        for x, y in zip(a, b, strict=True)
    )


@each_contract
def test_contract_changes_every_argument(op, kind):
    contract = contracts_of(op)[kind](Draw(seed=11))
    parameters = set(inspect.signature(getattr(ops, op)).parameters)
    assert set(contract.base) == parameters
    assert set(contract.changes) | set(EXEMPT.get(op, {})) == parameters


@each_contract
def test_every_change_changes_the_reference(op, kind):
    with use_backend("reference"):
        calls = [(name, arguments, call(op, arguments)) for name, arguments in variants(op, kind)]
    for name, arguments, result in calls[1:]:
        which = name.partition(" #")[0]
        if which == "out":
            # where the result goes, not what it is: it must arrive in that very tensor
            mine = fresh(arguments)
            assert getattr(ops, op)(**mine) is mine["out"], f"{op}: {name} is not what comes back"
            continue
        assert differ(calls[0][2], result), f"{op}: the reference gives the same with and without {name}"


def refused(op, kind, name, provider, dtype):
    """What the provider says to a call that it does not take, as the op's `REFUSED` has it, else None."""
    return refused_of(op, provider.partition(":")[0], f"{kind}, {name}", dtype)


def computed(fn, expected, provider, what):
    """What ``fn`` returns, or None where it is refused as expected: in those words, and never otherwise."""
    try:
        result = fn()
    except RuntimeError as error:
        said = str(error).partition(f"cannot run here ({provider.partition(':')[0]}: ")[2][:-1]
        if not said or said != expected:
            raise
        return None
    assert expected is None, f"{what}: expected to be refused ({expected}), was computed"
    return result


def providers_of(op):
    return [p for p in PROVIDERS if p != "reference" and p.partition(":")[0] in OPS[op].providers]


#: (provider, op, kind): of the providers that an op has, those that take some call of the contract.
OBEYED = [
    (provider, op, kind, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for op, kind in CONTRACTS
    for provider in providers_of(op)
    if refused(op, kind, "as it is", provider, dtype) is None
]


@pytest.mark.parametrize("provider, op, kind, dtype", OBEYED, ids=name_of, indirect=["provider"])
def test_provider_obeys_every_argument(provider, op, kind, dtype):
    for name, arguments in variants(op, kind, dtype, provider_device(provider)):
        what = f"{op} with {name} on {provider}"
        with fp32_precision("ieee"):  # tf32 is less exact than this asks for
            said = refused(op, kind, name, provider, dtype)
            got = computed(lambda a=arguments: call(op, a), said, provider, what)
        if got is None:
            continue
        with use_backend("reference"):
            exact, peer = call(op, to_float64(arguments)), call(op, arguments)
        assert len(got) == len(exact)
        for g, e, p in zip(got, exact, peer, strict=True):
            assert g.dtype == p.dtype, f"{what}: expected {p.dtype}, got {g.dtype}"
            assert g.shape == e.shape, f"{what}: expected shape {tuple(e.shape)}, got {tuple(g.shape)}"
            if not g.is_floating_point():
                assert torch.equal(g, e), what
            elif g.dtype == torch.float32:
                assert_close(g, e, bound=1e-5, what=what)
            else:
                assert_no_worse(g, p, e, what=what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize(
    "provider, op, kind",
    [(name, op, kind) for op, kind in CONTRACTS for name in OPS[op].providers if name != "reference"],
    indirect=["provider"],
)
def test_what_is_refused(provider, op, kind, dtype):
    """The sentences of `REFUSED` and no others, whichever argument is changed."""
    said, expected = {}, {}
    for name, arguments in variants(op, kind, dtype, provider_device(provider)):
        made = call_of(op, (), arguments)
        if made is not None:
            said[name] = made[0].providers[provider].refuses(*made[1], made[2])
            expected[name] = refused(op, kind, name, provider, dtype)
    assert said == expected


@each_contract
def test_an_ignored_argument_is_noticed(op, kind, monkeypatch):
    """This file's own test: whichever schema argument a provider is deaf to, some change shows it."""
    contract = contracts_of(op)[kind](Draw(seed=11))
    with RecordCalls() as record:
        call(op, contract.base)
    usual = dict(record.calls)[op]
    honest = OPS[op].providers["reference"]
    plain = [(which, changed) for which, changed in variants(op, kind) if changed.get("out") is None]
    with use_backend("reference"):
        expected = {which: call(op, changed) for which, changed in plain}

        def notices(which, changed):
            try:
                return differ(expected[which], call(op, changed))
            except Exception:  # shapes that no longer fit are noticed as well
                return True

        for i, argument in enumerate(OPS[op].handle._schema.arguments):

            def deaf(*args, i=i):
                return honest.run(*args[:i], usual[i], *args[i + 1 :])

            monkeypatch.setitem(OPS[op].providers, "reference", backends.Provider(deaf))
            likely_first = sorted(plain, key=lambda item: not item[0].startswith(argument.name))
            assert any(notices(*item) for item in likely_first), (
                f"{op}: nothing shows that {argument.name} is ignored"
            )


@pytest.mark.parametrize(
    "provider, op, kind",
    [
        (provider, op, kind)
        for provider, op, kind, dtype in OBEYED
        if dtype == torch.float32 and with_gradients(contracts_of(op)[kind](Draw()).base)[1]
    ],
    indirect=["provider"],
)
def test_gradient_obeys_every_argument(provider, op, kind):
    for name, arguments in variants(op, kind, device=provider_device(provider)):
        if arguments.get("out") is None:
            what = f"{op} with {name} on {provider}"
            said = refused(op, kind, name, provider, torch.float32)

            def obeys(arguments=arguments, what=what):
                check_gradients(op, (), arguments, 1e-5, what)
                return True

            computed(obeys, said, provider, what)


def test_every_schema_argument_takes_several_values():
    """The calls above reach every argument of the registered ops' schemas with more than one value."""
    values: dict[tuple[str, str], list[Any]] = {}
    for op, kind in CONTRACTS:
        for _, arguments in variants(op, kind):
            given = fresh(arguments)
            if arguments.get("out") is None:
                given, _ = with_gradients(given)
            with RecordCalls() as record:
                results = outputs(getattr(ops, op)(**given))
                results = [r for r in results if r.requires_grad]
                if results:
                    torch.autograd.backward(results, [r.detach() for r in results])
            for name, args in record.calls:
                if name in OPS:
                    schema = OPS[name].handle._schema.arguments
                    assert len(schema) == len(args)
                    for argument, value in zip(schema, args, strict=True):
                        seen = values.setdefault((name, argument.name), [])
                        if not any(same(value, other) for other in seen):
                            seen.append(value)
    for name, registered in OPS.items():
        if set(registered.providers) == {
            "reference"
        }:  # a gradient in plain PyTorch: no kernel to read it wrongly
            continue
        for argument in registered.handle._schema.arguments:
            seen = values.get((name, argument.name), [])
            assert len(seen) > 1, (
                f"{name}: argument {argument.name!r} takes {len(seen)} value(s) in the contract"
            )


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b
