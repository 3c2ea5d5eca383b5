# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. How is a language model a policy?
#
# So far a policy was a table: a row for each state, a number for each action. From here on it is GPT-2, a network that
# reads a text and says how likely each next token is. That is a policy too, and nothing of what you have learned
# changes: the same function objects that were checked on tables now take GPT-2's numbers.
#
# | | Tables, lessons 1 to 9 | A language model |
# | --- | --- | --- |
# | state $s_t$ | a row | the text so far: prompt $x$ and the tokens $y_0 \dots y_{t-1}$ |
# | action $a_t$ | a column | the next token $y_t$, one of the $V$ in the vocabulary |
# | next state | drawn from $P(s' \mid s, a)$ | the text with the token appended: no chance in it |
# | policy $\pi(a \mid s)$ | a table | a softmax over the logits of a network with parameters $\theta$ |
# | trajectory $\tau$ | states and actions | prompt and completion |
#
# ($V$ alone is that number from here on; a value keeps its state, $V(s)$.) Only the number of states is new: 4,096
# tokens and 24 places make more than $10^{86}$ texts. No table holds them; so this lesson is about computing with the
# few that we meet, without mistakes.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import enumerable, log_probs, numpy_losses, plots, policy_gradient, ppo
from rlhf_jax.lm import gpt2, sequences, tokenizer, weights
from rlhf_jax.lm.generate import generate
from rlhf_jax.training import language

# %% [markdown]
# ## Text as numbers
#
# The package carries a small GPT-2 that has read film reviews. Its **tokenizer** cuts text into **tokens**, pieces of
# text that are frequent enough to have a number of their own. One of them, number 0, is no text: it opens every review
# (as `bos_token_id`) and closes it (as `eos_token_id`; the end of text, in short **EOS**).

# %%
config, params = weights.load("bundled")
encoder = tokenizer.load("bundled")
encode = lambda text: [config.bos_token_id, *encoder.encode(text).ids]

ids = encode("This film was one of the best")
print([encoder.decode([i]) for i in ids], "of", config.vocab_size)
assert encoder.decode(ids) == "This film was one of the best", "nothing is lost on the way there and back"

# %% [markdown]
# ## What the network computes
#
# Each token becomes a vector (an **embedding**), to which a vector for its place is added. Then, in each of three
# **layers**, every place looks back at the places before it and mixes in what it finds there (**attention**), and a
# small network transforms each vector alone. At the end, the vector at place $t$ (its **hidden state**) is multiplied
# with the embeddings of all $V$ tokens: $V$ **logits**, whose softmax is $\pi(\cdot \mid \text{tokens } 0 \dots t)$.
#
# "Looks back" is the point. Place $t$ must not know what follows, or it would predict the next token by reading it.
# Change a token, and only the logits from there on may change.

# %%
logits = gpt2.apply(config, params, jnp.array([ids]))
assert logits.shape == (1, len(ids), config.vocab_size)

changed = jnp.array([ids]).at[0, 5].set(encoder.encode(" all").ids[0])
difference = np.abs(gpt2.apply(config, params, changed) - logits).max(axis=2)[0]
assert (difference[:5] < 1e-4).all(), "the past does not see the future"
assert (difference[5:] > 0.1).all()

# %% [markdown]
# So one pass through the network gives the policy at **every** state along a text. Here is one state:

# %%
opening = jnp.array([encode("The acting was")])
next_probs = np.array(jax.nn.softmax(gpt2.apply(config, params, opening)[0, -1]))
likeliest = np.argsort(-next_probs)[:8]
print({encoder.decode([i]): round(float(next_probs[i]), 3) for i in likeliest})

# %% [markdown]
# ## How likely is a text?
#
# Lesson 1 multiplied along a trajectory. The text's own moves have probability 1, so only the policy's factors are
# left, and we add their logarithms:
#
# $$\log \pi(y|x) = \sum_t \log \pi(y_t \mid x, y_{<t}), \qquad
# \log \pi(y_t \mid \cdot) = \text{logit}_{y_t} - \log \sum_v e^{\text{logit}_v}.$$
#
# Mind the **shift**: the logits at place $t$ score the token at place $t + 1$. A text of 8 tokens has 7
# log-probabilities. (`token_log_probs` takes the whole text and shifts for you.)

# %%
tokens = jnp.array([ids])
by_loop = numpy_losses.token_log_probs(np.array(logits[0]), ids)
per_token = log_probs.token_log_probs(logits, tokens)[0]
assert len(per_token) == len(ids) - 1
assert np.allclose(per_token, by_loop, atol=1e-4)
assert np.isclose(per_token[2], jax.nn.log_softmax(logits[0, 2])[ids[3]], atol=1e-4), "place 2 scores token 3"


def scored(text):
    rows = jnp.array([encode(text)])
    return np.array(log_probs.token_log_probs(gpt2.apply(config, params, rows), rows)[0])


good, bad = "This is a very good film.", "This are a very good film."
good_scores, bad_scores = scored(good), scored(bad)
print(f"log-probabilities: {good_scores.sum():.1f} nats for {good!r}, {bad_scores.sum():.1f} for {bad!r}")
assert good_scores.sum() > bad_scores.sum() + 5, "it has learned some grammar"

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.8, height=3.5, width_ratios=[1, 1.5])
    left.barh([encoder.decode([i]) for i in likeliest], next_probs[likeliest], color=plots.SKY)
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.set(xlabel="probability of the next token", title='After "The acting was"')
    places = np.arange(len(good_scores))
    right.bar(places - 0.2, good_scores, 0.4, color=plots.BLUE, label="is")
    right.bar(places + 0.2, bad_scores, 0.4, color=plots.VERMILLION, label="are")
    right.axhline(-np.log(config.vocab_size), **plots.EXACT, label="all tokens alike: −ln V")
    right.set_xticks(places, ["This", "is / are", "a", "very", "good", "film", "."])
    right.set(ylabel="log-probability (nats)", title="Token by token")
    right.legend(loc="center right")
plots.save(figure, "10_next_token")

# %% [markdown]
# ## Many texts at once: padding and masks
#
# An array is a rectangle, texts are not. Fill up the short rows with anything, and carry a **mask** that is True at
# real tokens. Done right, padding on either side changes no real token's number: it is not looked at, and places are
# counted without it.

# %%
rows = [encode("This film was one of the best"), encode("Dull.")]
alone = [gpt2.apply(config, params, jnp.array([row]))[0] for row in rows]
for pad, begins in [(sequences.pad_right, [0, 0]), (sequences.pad_left, [12 - len(row) for row in rows])]:
    padded, mask = pad(rows, 12)
    together = gpt2.apply(config, params, padded, mask)
    for row in range(2):
        real = together[row, begins[row] : begins[row] + len(rows[row])]
        assert np.allclose(real, alone[row], atol=1e-3), "padding changes nothing"

# %% [markdown]
# GPT-2 has no padding token, so people pad with EOS and then *guess* the mask, as `tokens != eos`. The guess is wrong
# wherever EOS is meant: here the opening token vanishes, and every number behind it is off. Masks are given, never
# guessed. And they are boolean: multiplying by 0 does not remove a NaN (not a number, say from $0/0$), selecting does.

# %%
guessed = gpt2.apply(config, params, padded, padded != config.eos_token_id)  # the rows padded on the left
assert np.abs(guessed - together)[mask].max() > 0.1, "a guessed mask changes the policy"

# %% [markdown]
# ## Writing
#
# To sample a trajectory: read the prompt, draw a token from the softmax, append it, read on. Reading the whole text
# again for each token would be wasteful, as the past does not change when the future is added. So each place's
# results (attention's keys and values) are kept in a **KV cache**, and each new token costs one place. For $N$ new
# tokens after a prompt of $P$:
#
# $$\text{without cache: } \sum_{t=0}^{N-1} (P + t) \text{ places}, \qquad \text{with: } P + N - 1.$$
#
# Here $P = 3$ and $N = 24$: 348 places against 26. The cache must not change the policy. We read the finished texts
# again in one pass, and compare.

# %%
prompts = np.tile(encode("This film"), (512, 1))
prompt_mask, length = np.ones_like(prompts, bool), 24
written = generate(config, params, prompts, prompt_mask, jax.random.key(0), max_new_tokens=length)
print(*encoder.decode_batch(np.array(written.tokens[:3]).tolist()), sep="\n")

texts = sequences.Sequences(prompts, prompt_mask, written.tokens, written.mask)
again = sequences.completion_log_probs(config, params, texts)
assert np.allclose(again, written.log_probs, atol=1e-3)

# %% [markdown]
# How surprised is the model by its own text? On average by exactly the **entropy** of its softmax,
# $H = -\sum_v \pi_v \log \pi_v$, place by place: that is what entropy means. $e^H$ is the number of equally likely
# tokens that would surprise as much, the **perplexity**.

# %%
states = sequences.completion_states(config, params, texts)[:, :-1]  # behind the last token nothing was drawn
entropies = ppo.entropy(gpt2.unembed(params, states)).mean(axis=1)
surprises = -again.mean(axis=1)
gap = np.array(surprises - entropies)
print(f"{surprises.mean():.2f} nats a token, entropy {entropies.mean():.2f}, perplexity {np.exp(entropies.mean()):.0f}")
assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))

# %% [markdown]
# Samplers offer to distort the policy: divide the logits by a **temperature** below 1, keep the **top k** tokens, the
# $k$ likeliest, or **top p**, the fewest that together hold a share $p$. The text gets safer. But it is then not drawn
# from $\pi$, and the log-probabilities that are reported are still $\pi$'s own. Train on such samples as if they were
# on-policy, and every expectation of lessons 4 to 9 is wrong. So training samples at temperature 1, with all tokens.

# %%
cool = generate(config, params, prompts, prompt_mask, jax.random.key(0), max_new_tokens=length, temperature=0.7)
texts_cool = texts._replace(completions=cool.tokens, completion_mask=cool.mask)
assert np.allclose(sequences.completion_log_probs(config, params, texts_cool), cool.log_probs, atol=1e-3)
assert -cool.log_probs.mean() < surprises.mean() - 0.5, "likelier text than the policy's own"

# %% [markdown]
# A text ends where EOS is drawn. The row is then filled up, and the mask says what counts: EOS itself does (to stop is
# an action, and it is learned), what follows does not. Reviews are long, so we let the full stop play EOS.

# %%
stop = encoder.encode(".").ids[0]
ended = generate(config, params, prompts, prompt_mask, jax.random.key(0), max_new_tokens=length, eos_id=stop)
lengths = np.array(ended.mask.sum(axis=1))
finished = np.array((ended.tokens == stop).any(axis=1))
assert 0.1 < finished.mean() < 0.9
assert (np.array(ended.tokens)[finished, lengths[finished] - 1] == stop).all(), "the last real token is the stop"
assert (np.array(ended.log_probs)[~np.array(ended.mask)] == 0).all()

# %% [markdown]
# ## The same loss, two policies
#
# Now the promise of this course. Take a language of 40 strings a prompt (lesson 9), and two policies that agree on
# every string: a table of logits, and a GPT-2 of 6,720 parameters. The losses see log-probabilities only, so they
# cannot tell which is which. We sum REINFORCE and PPO's clip over every string, each with its probability, and take
# $A = r - \beta \log \frac{\pi}{\pi_\text{ref}}$ (lesson 9's $R$) as its advantage. Nothing has moved yet, so PPO's
# ratio is 1, and either gradient must be that of
# $J = \mathbb{E}_\pi[r] - \beta\, \mathrm{KL}(\pi \Vert \pi_\text{ref})$, for the table and for the network.

# %%
models = language.policies()
problem = language.make_problem(models["table"])
clip = lambda log_prob, advantage: ppo.clipped_surrogate_loss(
    log_prob, jax.lax.stop_gradient(log_prob), advantage, clip_eps=0.2
)


def mean_loss(params, config, loss):
    log_prob = language.string_log_probs(problem, config, params)
    probs = jax.lax.stop_gradient(jnp.exp(log_prob))
    advantage = problem.rewards - problem.beta * jax.lax.stop_gradient(log_prob - problem.ref_log_probs)
    return (probs * loss(log_prob, advantage)).sum(axis=1).mean()


for policy in models.values():
    assert np.allclose(language.string_log_probs(problem, *policy), problem.ref_log_probs, atol=1e-4)
    exact = jax.grad(lambda params, policy=policy: language.exact_loss(params, problem, config=policy.config)[0])  # -J
    for loss in (policy_gradient.reinforce_loss, clip):
        by_sampling_loss = jax.tree.leaves(jax.grad(mean_loss)(policy.params, policy.config, loss))
        pairs = zip(by_sampling_loss, jax.tree.leaves(exact(policy.params)), strict=True)
        assert all(np.allclose(one, other, atol=1e-5) for one, other in pairs)

# %% [markdown]
# And both climb, by plain steps along REINFORCE's gradient, towards the optimum $\beta \log Z$ of lesson 8. The network
# shares its parameters between strings, so its path is another; after 300 steps it lacks a little more.

# %%
heights = {}
for name, policy in models.items():
    reinforce = lambda params, config=policy.config: mean_loss(params, config, policy_gradient.reinforce_loss)
    step = jax.jit(jax.grad(reinforce))
    height = jax.jit(lambda params, config=policy.config: -language.exact_loss(params, problem, config=config)[0])
    reached, heights[name], rate = policy.params, [], {"table": 10.0, "GPT-2": 0.1}[name]
    for _ in range(300):
        heights[name].append(float(height(reached)))
        reached = jax.tree.map(lambda p, g, rate=rate: p - rate * g, reached, step(reached))
best = jax.vmap(enumerable.optimal_value, (0, 0, None))(problem.ref_log_probs, problem.rewards, problem.beta).mean()
assert all(max(heights[name]) < best + 1e-5 for name in heights), "nobody is above the optimum"
print({name: float(best) - heights[name][-1] for name in heights})
assert best - heights["table"][-1] < 2e-3
assert best - heights["GPT-2"][-1] < 0.05

# %%
with plots.style():
    figure, axes = plots.subplots(width=6.4, height=3.3)
    axes.plot(heights["table"], color=plots.BLUE, label="a table of logits")
    axes.plot(heights["GPT-2"], color=plots.VERMILLION, label="a GPT-2 of 6,720 parameters")
    axes.axhline(best, **plots.EXACT, label="exact optimum β log Z")
    axes.set(xlabel="gradient steps", ylabel="objective J (reward units)", title="One loss function, two policies")
    axes.legend(loc="lower right")
plots.save(figure, "10_two_policies")

# %% [markdown]
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/10_gpt2_as_a_policy.py).
#
# **1.** In plain NumPy: from logits $[T, V]$ of a causal model and its tokens $[T]$, return the log-probability of
# everything behind the first token, in nats. Mind the shift.


# %%
def exercise_1(logits, tokens):
    return ...


small, row = np.random.default_rng(0).normal(size=(5, 7)), np.array([3, 0, 6, 2, 2])
answer, expected = exercise_1(small, row), log_probs.token_log_probs(small[None], row[None]).sum()
assert answer is ... or np.isclose(answer, expected, atol=1e-4), "logits[t] scores tokens[t + 1]"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** Return the probabilities $[V]$ with which a sampler draws the next token, at `temperature` and with the `top_k`
# likeliest tokens kept. The temperature comes first; what is kept sums to 1 again.


# %%
def exercise_2(logits, temperature, top_k):
    return ...


answer = exercise_2(np.log([1.0, 8.0, 2.0, 4.0]), 0.5, 2)
assert answer is ... or np.allclose(answer, [0, 0.8, 0, 0.2], atol=1e-6), "8^2 : 4^2, the others never"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** A colleague saved the sampled tokens $[N]$ of some completions, and lost the masks. Rebuild the mask of one
# completion from its tokens and `eos_id`, so that the end of text is learned and what follows it is not (a boolean
# array $[N]$; a text that was cut off has no EOS). Then think of the prompt: why can its mask not be rebuilt like this?


# %%
def exercise_3(tokens, eos_id):
    return ...


own_config, own_params = weights.load("bundled")
start, full_stop = np.zeros((64, 1), int), tokenizer.load("bundled").encode(".").ids[0]
sampled = generate(
    own_config, own_params, start, np.ones_like(start, bool), jax.random.key(1), max_new_tokens=20, eos_id=full_stop
)
answer = exercise_3(np.array(sampled.tokens[0]), full_stop)
if answer is not ...:
    for tokens_of_one, mask_of_one in zip(np.array(sampled.tokens), np.array(sampled.mask), strict=True):
        rebuilt = exercise_3(tokens_of_one, full_stop)
        assert np.array_equal(rebuilt, mask_of_one), "all up to the first EOS, that one included"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Vaswani et al. (2017), "Attention Is All You Need", and Radford et al. (2019), "Language Models are Unsupervised
#   Multitask Learners": `gpt2.apply`; the network itself is short, read `rlhf_jax/lm/transformer.py`.
# - Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration": top p in `generate.generate`.
# - Real vocabularies have 50,000 tokens, and logits of a batch fill the memory: `log_probs.chunked_token_log_probs`
#   gives the same numbers without holding them.
# - [Lesson 11](11_sft_and_reward_model.py) begins to train: first on good examples, then a model of what people like.
