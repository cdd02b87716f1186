"""Tests on tiny models on the CPU; scripts/recipe-test runs them. The vectors are what Tessera's own trainer is held to, too: computed in float64 by
another program (see README.md in their folder)."""

import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoModelForCausalLM, LlamaConfig

import block_mask
import train

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = REPOSITORY / os.environ.get("TESSERA_SHARED", "../shared") / "vectors" / "train"
TOLERANCE = 1e-4  # of a float32 trainer, relative to a number's size and to 1
MODELS = ["tied", "untied"]

torch.set_num_threads(1)


# The models and the vectors.


def hugging_face(folder: Path, name: str) -> Path:
    """Writes the tiny model as a Hugging Face folder. Rows of q and k are brought from the order in which neighbours turn together into the one in
    which the halves of a head do."""
    heads, kv_heads, dim = 4, 2, 16
    places = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"}
    parts |= {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    parts |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    tensors = {}
    for t in GGUFReader(REPOSITORY / "testdata" / f"tiny-{name}.gguf").tensors:
        value, key = torch.tensor(np.array(t.data)), t.name.removesuffix(".weight")
        if key.startswith("blk."):
            _, layer, part = key.split(".")
            if part in ("attn_q", "attn_k"):
                value = value.reshape(heads if part == "attn_q" else kv_heads, dim // 2, 2, -1).transpose(1, 2).reshape(value.shape)
            key = f"model.layers.{layer}.{parts[part]}"
        else:
            key = places[key]
        tensors[key + ".weight"] = value.contiguous()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=name == "tied",
    )  # fmt: skip
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: hugging_face(folder / name, name) for name in MODELS}


@pytest.fixture(scope="session")
def vectors() -> dict:
    if not (VECTORS / "train.json").exists():
        pytest.skip(f"no vectors at {VECTORS}; set TESSERA_SHARED to the folder that holds them")
    return json.loads((VECTORS / "train.json").read_text())


def with_adapter(folder: Path, attention: str = "sdpa") -> torch.nn.Module:
    """The model with the vectors' start values in a LoRA of PEFT's."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation=attention)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=train.TARGETS, task_type="CAUSAL_LM")).train()
    start = load_file(VECTORS / "lora.safetensors")
    trained = adapter_of(model)
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for key, value in start.items():
            trained[key].copy_(value)
    return model


def adapter_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained, by the names that PEFT saves it under."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}


def samples_of(vectors: dict) -> dict[str, tuple[train.Sample, str]]:
    """The vectors' samples by name, with the mode each is in."""
    samples = {}
    for s in vectors["samples"]:
        targets = [i for i, is_target in enumerate(s["loss_mask"]) if is_target]
        blocks = s["blocks"] or [len(s["ids"])]
        samples[s["name"]] = train.Sample(torch.tensor(s["ids"]), blocks, targets), "block" if s["blocks"] else "full"
    return samples


class Differences:
    """The largest of all that were compared, each relative to the expected number or to 1."""

    def __init__(self):
        self.largest = 0.0

    def compare(self, what: str, got: float, want: float) -> None:
        difference = abs(got - want) / max(1, abs(want))
        assert difference <= TOLERANCE, f"{what}: {got}, want {want}"
        self.largest = max(self.largest, difference)


@pytest.fixture
def differences(request):
    d = Differences()
    yield d
    print(f"\n{request.node.name}: largest difference {d.largest:.1e}")


# What they say.


@pytest.mark.parametrize("name", MODELS)
def test_losses_logits_and_gradients_are_the_vectors(tiny, vectors, name, differences):
    model = with_adapter(tiny[name])
    for case in vectors["models"][name]["cases"]:
        s, mode = samples_of(vectors)[case["sample"]]
        want = case["lora"]
        model.zero_grad()
        seen = train.learn(model, s, mode, block_share=0.5, distill=0, keep=0, weight=1, attention="dense")
        differences.compare(f"{case['sample']}: loss", seen[mode], want["loss"])
        blocks = s.blocks if mode == "block" else [len(s.ids)]
        last = train.logits(model, s, blocks, [len(s.ids) - 1], "dense")[0]
        for i, logit in enumerate(want["last_logits"]):
            differences.compare(f"{case['sample']}: logit {i}", last[i].item(), logit)
        adapter = adapter_of(model)
        assert adapter.keys() == want["grads"].keys()
        for key, grad in want["grads"].items():
            differences.compare(f"{case['sample']}: norm of {key}", adapter[key].grad.norm().item(), grad["norm"])
            for at, value in grad["entries"]:
                differences.compare(f"{case['sample']}: {key} {at}", adapter[key].grad[tuple(at)].item(), value)


@pytest.mark.parametrize("name", MODELS)
def test_distillation_is_the_vectors(tiny, vectors, name, differences):
    """Their teacher is the model without the adapter, in full mode, on the rows of the targets."""
    model = with_adapter(tiny[name])
    for case in vectors["models"][name]["cases"]:
        s, mode = samples_of(vectors)[case["sample"]]
        rows = train.rows_wanted(s, distill=False)
        with torch.no_grad(), model.disable_adapter():
            teacher = train.logits(model, s, [len(s.ids)], rows, "dense")
        model.zero_grad()
        loss = train.divergence(teacher, train.logits(model, s, s.blocks if mode == "block" else [len(s.ids)], rows, "dense"))
        loss.backward()
        differences.compare(f"{case['sample']}: loss", loss.item(), case["lora"]["distill"]["loss"])
        for key, norm in case["lora"]["distill"]["grad_norms"].items():
            differences.compare(f"{case['sample']}: {key}", adapter_of(model)[key].grad.norm().item(), norm)


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_are_the_vectors(tiny, vectors, name, differences):
    model, samples = with_adapter(tiny[name]), list(samples_of(vectors).values())
    optimizer = train.adamw(adapter_of(model).values(), vectors["optimizer"]["weight_decay"])
    want = vectors["models"][name]["train_lora"]
    for step, i in enumerate(vectors["optimizer"]["order"]):
        s, mode = samples[i]
        model.zero_grad()
        seen = train.learn(model, s, mode, block_share=0.5, distill=0, keep=0, weight=1, attention="dense")
        differences.compare(f"step {step}", seen[mode], want["losses"][step])
        train.update(optimizer, {"gradient": 1}, vectors["optimizer"]["lr"], clip=0)
    for (s, mode), loss in zip(samples, want["after"]["losses"], strict=True):
        differences.compare("after", train.learn(model, s, mode, block_share=0.5, distill=0, keep=0, weight=1, attention="dense")[mode], loss)
    for key, norm in want["after"]["norms"].items():
        differences.compare(f"after: {key}", adapter_of(model)[key].norm().item(), norm)


# The objective and the mask against their definitions.


def by_definition(model: torch.nn.Module, s: train.Sample, blocks: list[int]) -> torch.Tensor:
    """The logits of all rows, with the mask written out token by token."""
    block = [i for i, n in enumerate(blocks) for _ in range(n)]
    sees = [[k <= q and (block[q] in (block[k], len(blocks) - 1)) for k in range(len(block))] for q in range(len(block))]
    mask = torch.where(torch.tensor(sees), 0.0, -math.inf)[None, None]
    return model(input_ids=s.ids[None], attention_mask=mask, use_cache=False).logits[0]


@pytest.mark.parametrize("mode", ["dual", "block", "full"])
def test_learn_is_the_gradient_of_the_objective(tiny, vectors, mode):
    model = with_adapter(tiny["tied"])
    s, _ = samples_of(vectors)["long-block"]
    s.targets.pop()  # so that the last token is none
    model.zero_grad()
    train.learn(model, s, mode, block_share=0.75, distill=0.7, keep=0, weight=0.25, attention="dense")
    got = {key: p.grad.clone() for key, p in adapter_of(model).items()}

    model.zero_grad()
    full, block = by_definition(model, s, [len(s.ids)]), by_definition(model, s, s.blocks)
    predict, targets = [t - 1 for t in s.targets], s.ids[s.targets]
    losses = {name: -of.log_softmax(-1)[predict, targets].mean() for name, of in (("full", full), ("block", block))}
    final = slice(len(s.ids) - s.blocks[-1], len(s.ids) - 1)
    p = full.detach().softmax(-1)[final]
    kl = (p * (p.log() - block.log_softmax(-1)[final])).sum(-1).mean()
    objective = {"dual": (losses["full"] + 3 * losses["block"]) / 4 + 0.7 * kl, "block": losses["block"] + 0.7 * kl, "full": losses["full"]}[mode]
    (0.25 * objective).backward()
    for key, p in adapter_of(model).items():
        torch.testing.assert_close(got[key], p.grad, rtol=1e-4, atol=1e-6)


def test_learn_keeps_what_the_base_says(tiny, vectors):
    model = with_adapter(tiny["tied"])
    s, _ = samples_of(vectors)["long-block"]
    s.targets, s.keep = [], True
    model.zero_grad()
    seen = train.learn(model, s, "block", block_share=0.5, distill=0.7, keep=3, weight=0.25, attention="dense")
    got = {key: p.grad.clone() for key, p in adapter_of(model).items()}

    model.zero_grad()
    whole, final = [len(s.ids)], slice(len(s.ids) - s.blocks[-1], len(s.ids) - 1)
    with torch.no_grad(), model.disable_adapter():
        p = by_definition(model, s, whole).softmax(-1)[final]
    kl = (p * (p.log() - by_definition(model, s, whole).log_softmax(-1)[final])).sum(-1).mean()
    (0.75 * kl).backward()
    assert seen["kept"] == pytest.approx(kl.item(), rel=1e-4) and kl.item() > 1e-3
    for key, p in adapter_of(model).items():
        torch.testing.assert_close(got[key], p.grad, rtol=1e-4, atol=1e-6)


def test_flex_mask_is_the_dense_mask():
    rng = random.Random(1)
    for _ in range(20):
        blocks = [rng.randint(1, 90) for _ in range(rng.randint(1, 6))]
        n = sum(blocks)
        length = n + -n % block_mask.TILE
        flex = block_mask.flex_mask(blocks, length, torch.device("cpu"))
        sees = create_mask(flex.mask_mod, 1, 1, length, length, device="cpu")[..., :n, :]
        dense = block_mask.dense_mask(blocks, torch.device("cpu"), torch.float32) == 0
        assert torch.equal(sees[..., :n], dense), f"blocks {blocks}"
        assert not sees[..., n:].any(), f"blocks {blocks}: filling is seen"
        tiles = flex.to_dense()[0, 0].repeat_interleave(block_mask.TILE, 0).repeat_interleave(block_mask.TILE, 1)
        assert not (dense[0, 0] & ~tiles[:n, :n].bool()).any(), f"blocks {blocks}: a tile that is seen would be skipped"


def test_flex_attention_gives_the_logits_of_the_dense_mask(tiny, vectors):
    """Forward alone, and not compiled: on a CPU, FlexAttention has no way back."""
    flex, dense = with_adapter(tiny["tied"], "flex_attention"), with_adapter(tiny["tied"])
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            for name, (s, _) in samples_of(vectors).items():
                rows = train.rows_wanted(s, distill=True)
                for blocks in (s.blocks, [len(s.ids)]):
                    got, want = train.logits(flex, s, blocks, rows, "flex"), train.logits(dense, s, blocks, rows, "dense")
                    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name} {blocks}: {m}")
    finally:
        torch.compiler.set_stance("default")


def test_checkpointed_activations_give_the_same_gradient(tiny, vectors):
    s, _ = samples_of(vectors)["long-block"]
    grads, passes = [], []
    for checkpoint in (False, True):
        flags = ["--checkpoint-activations"] if checkpoint else []
        model, calls = train.load(train.parse(arguments(tiny["tied"], VECTORS, VECTORS, *flags))), []
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        train.learn(model, s, "dual", block_share=0.5, distill=1, keep=0, weight=1, attention="dense")
        grads.append({key: p.grad for key, p in adapter_of(model).items()})
        passes.append(len(calls))
    assert passes == [2, 4], "each activation is to be computed again"
    assert any(grad.any() for grad in grads[0].values())
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-6, atol=1e-7)


# Runs.


def write_samples(path: Path, n: int) -> Path:
    rng = random.Random(1)
    with open(path, "w") as f:
        for _ in range(n):
            blocks = [rng.randint(3, 20) for _ in range(rng.randint(2, 5))]
            total = sum(blocks)
            print(json.dumps({"ids": [rng.randrange(253) for _ in range(total)], "blocks": blocks, "targets": [total - 2, total - 1]}), file=f)
    return path


def arguments(model: Path, samples: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--samples", str(samples), "--out", str(out), "--batch", "2", "--rank", "2", "--alpha", "4", *more]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_bfloat16_learns_the_same_to_its_precision(tiny, tmp_path):
    samples = write_samples(tmp_path / "samples.jsonl", 8)
    for dtype in ("float32", "bfloat16"):
        train.main(arguments(tiny["untied"], samples, tmp_path / dtype, "--dtype", dtype, "--lr", "0.01"))
    exact, rounded = trained(tmp_path / "float32"), trained(tmp_path / "bfloat16")
    for key, want in exact.items():
        assert rounded[key].dtype == torch.float32, "the adapter's own values are kept in float32"
        if "lora_B" in key:
            apart = F.cosine_similarity(rounded[key].flatten(), want.flatten(), dim=0)
            assert apart > 0.9, f"{key}: cosine {apart}"


@pytest.mark.parametrize("mode", ["dual", "alternate"])
def test_a_run_that_was_interrupted_goes_on_to_the_same_adapter(tiny, tmp_path, monkeypatch, mode):
    samples = write_samples(tmp_path / "samples.jsonl", 10)
    train.main(arguments(tiny["tied"], samples, tmp_path / "whole", "--mode", mode))

    learn, calls = train.learn, iter(range(100))

    def interrupted(*args, **keywords):
        if next(calls) == 5:  # in the middle of the third step
            raise KeyboardInterrupt
        return learn(*args, **keywords)

    monkeypatch.setattr(train, "learn", interrupted)
    with pytest.raises(SystemExit, match="ended; the same command goes on"):
        train.main(arguments(tiny["tied"], samples, tmp_path / "cut", "--mode", mode))
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(train, "learn", learn)
    with pytest.raises(SystemExit, match="of a run with lr 0.001, not 0.002"):
        train.main(arguments(tiny["tied"], samples, tmp_path / "cut", "--mode", mode, "--lr", "2e-3"))
    train.main(arguments(tiny["tied"], samples, tmp_path / "cut", "--mode", mode))
    whole, cut = trained(tmp_path / "whole"), trained(tmp_path / "cut")
    assert whole.keys() == cut.keys() and any(whole[key].any() for key in whole if "lora_B" in key)
    for key in whole:
        assert torch.equal(whole[key], cut[key]), key


def test_a_loss_that_is_no_number_leaves_weights_that_gave_numbers(tiny, tmp_path, monkeypatch):
    samples = write_samples(tmp_path / "samples.jsonl", 6)
    learn, calls = train.learn, iter(range(100))
    monkeypatch.setattr(train, "learn", lambda *a, **k: learn(*a, **k) | ({"block": math.nan} if next(calls) == 3 else {}))
    monkeypatch.setattr(train, "SAVE_EVERY", -1)
    with pytest.raises(SystemExit, match="step 2: block of sample 3 is nan; training went astray"):
        train.main(arguments(tiny["tied"], samples, tmp_path / "out"))
    state = torch.load(tmp_path / "out.state")
    assert state["done"] == 0 and all(p.isfinite().all() for p in state["adapter"].values())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said(tiny, tmp_path):
    samples = write_samples(tmp_path / "samples.jsonl", 2)
    (tmp_path / "out.state.part").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match=r"out\.state\.part: No space left on device"):
        train.main(arguments(tiny["tied"], samples, tmp_path / "out"))


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", r'samples.jsonl:2: is no \{"ids","blocks","targets"\}'),
        ('{"ids":[1,2],"blocks":[2]}', "samples.jsonl:2: .*KeyError: 'targets'"),
        ('{"ids":[1,2,3],"blocks":[1,1,1],"targets":[2],"finals":2}', "samples.jsonl:2: 2 questions over the same passages"),
        ('{"ids":[1,2],"blocks":[1],"targets":[1]}', r"samples.jsonl:2: blocks of \[1\] tokens for 2 ids"),
        ('{"ids":[1,2],"blocks":[2,0],"targets":[1]}', r"samples.jsonl:2: blocks of \[2, 0\] tokens for 2 ids"),
        ('{"ids":[1,256],"blocks":[2],"targets":[1]}', "samples.jsonl:2: ids from 1 to 256; the model's vocabulary has 0 to 255"),
        ('{"ids":[1,2],"blocks":[2],"targets":[0]}', r"samples.jsonl:2: targets \[0\]; expected some, ascending, from 1 to 1"),
        ('{"ids":[1,2],"blocks":[2],"targets":[]}', r"samples.jsonl:2: targets \[\]"),
        ('{"ids":[1,2],"blocks":[2],"targets":[1]}\n{"ids":[1,2],"blocks":[2],"targets":[1]}', "3 samples, expected a multiple of --batch 2"),
    ],
)
def test_what_is_wrong_with_samples_is_said(tiny, tmp_path, line, says):
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"ids":[1,2],"blocks":[2],"targets":[1]}\n' + line + "\n")
    with pytest.raises(SystemExit, match=says):
        train.main(arguments(tiny["tied"], samples, tmp_path / "out"))


def test_other_families_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type":"gemma"}')
    with pytest.raises(SystemExit, match="model_type is 'gemma'; Tessera runs llama and mistral"):
        train.main(arguments(tmp_path, tmp_path / "samples.jsonl", tmp_path / "out"))


# Beside Tessera.

BIRDS = """\
{"id":"1","split":"train","question":"Which bird sings at night?","answers":["The nightingale"],"passages":[{"title":"Nightingale","text":"The nightingale sings at night.","gold":true},{"title":"Rook","text":"Rooks live in colonies."}]}
{"id":"2","split":"train","question":"Where do rooks live?","answers":["colonies"],"passages":[{"text":"Swifts sleep in flight."},{"title":"Rook","text":"Rooks live in colonies.","gold":true}]}
{"id":"3","split":"train","question":"What do swifts do in flight?","answers":["sleep"],"passages":[{"text":"Swifts sleep in flight.","has_answer":true},{"text":"Owls hear well."}]}
"""


@pytest.fixture(scope="session")
def tessera(tmp_path_factory):
    """The command, run on a tiny model: its standard output."""
    if not shutil.which("go"):
        pytest.skip("no go command here")
    folder = tmp_path_factory.mktemp("tessera")
    subprocess.run(["go", "build", "-o", folder / "tessera", "./cmd/tessera"], cwd=REPOSITORY, check=True)

    def run(command: str, name: str, *arguments) -> str:
        model = REPOSITORY / "testdata" / f"tiny-{name}.gguf"
        environment = os.environ | {"TESSERA_HOME": str(folder / "home")}
        line = [folder / "tessera", command, "-m", model, *arguments]
        return subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    return run


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_means_the_same_to_tessera(tiny, tessera, tmp_path, name):
    """Samples that Tessera exports train an adapter, which it opens: log-probabilities of all tokens are those of the model trained here."""
    (tmp_path / "birds.jsonl").write_text(BIRDS)
    samples, out = tmp_path / "samples.jsonl", tmp_path / "out"
    tessera("train", name, "--data", tmp_path / "birds.jsonl", "--validate", "0", "--steps", "6", "--batch", "2", "-k", "1-2", "--export", samples)
    train.main(arguments(tiny[name], samples, out, "--lr", "0.01"))

    seen = train.read_samples(samples, 256)[:3]
    cases = [{"name": f"{i} full", "ids": s.ids.tolist(), "blocks": None} for i, s in enumerate(seen)]
    cases += [{"name": f"{i} block", "ids": s.ids.tolist(), "blocks": s.blocks} for i, s in enumerate(seen)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    scores = {of: json.loads(tessera("score", name, tmp_path / "cases.json", "--kv", "f32", "--adapter", of)) for of in ("none", str(out))}

    model = AutoModelForCausalLM.from_pretrained(tiny[name], dtype="float32")
    model.load_adapter(out)
    largest = 0.0
    for case, score, base in zip(cases, scores[str(out)], scores["none"], strict=True):
        s = train.Sample(torch.tensor(case["ids"]), case["blocks"] or [len(case["ids"])], [])
        with torch.no_grad():
            got = train.logits(model, s, s.blocks, list(range(len(s.ids))), "dense").log_softmax(-1)
        tokens = torch.tensor(score["next_logprob"])
        largest = max(largest, (tokens - got[:-1].gather(1, s.ids[1:, None])[:, 0]).abs().max().item())
        assert largest <= TOLERANCE, case["name"]
        for id, logprob in score["last_top"]:
            assert abs(logprob - got[-1, id].item()) <= TOLERANCE, case["name"]
        assert (tokens - torch.tensor(base["next_logprob"])).abs().max() > 0.1, f"{case['name']}: the adapter changes nothing"
    print(f"\nlargest difference of a log-probability {largest:.1e}")


def test_a_run_begins_as_tesseras_and_has_its_rates(tiny, tessera, tmp_path, monkeypatch, differences):
    """The first step's losses and divergence do not depend on A, since B is zero: they must be those of `tessera train` on the same data."""
    (tmp_path / "birds.jsonl").write_text(BIRDS)
    data = ["--data", tmp_path / "birds.jsonl", "--validate", "0", "--steps", "6", "--batch", "2", "-k", "1-2", "--rank", "2", "--alpha", "4", "--warm-up", "0.45"]
    tessera("train", "tied", *data, "--export", tmp_path / "samples.jsonl")
    theirs = json.loads(tessera("train", "tied", *data, "--out", tmp_path / "a.gguf", "--json"))["steps"]

    ours, update = [], train.update

    def record(optimizer, seen, rate, clip):
        ours.append({**seen, "rate": rate})
        update(optimizer, seen, rate, clip)

    monkeypatch.setattr(train, "update", record)
    train.main(arguments(tiny["tied"], tmp_path / "samples.jsonl", tmp_path / "out", "--warm-up", "0.45"))
    for name in ("full", "block", "divergence"):
        want = theirs[0][name.capitalize()]
        differences.compare(name, ours[0][name], want["Sum"] / want["N"])
    assert [step["Tokens"] for step in theirs] == [step["tokens"] for step in ours]
    assert [step["Rate"] for step in theirs] == pytest.approx([step["rate"] for step in ours], rel=1e-12)
