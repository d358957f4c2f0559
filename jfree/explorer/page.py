# /// script
# [tool.marimo.display]
# theme = "system"
# ///
# pyright: standard
"""The page of `jfree explore`, a marimo app: sliders for a network, and what becomes of its spectrum."""

import marimo

app = marimo.App(width="full", app_title="jfree explore")


@app.cell
def _():
    import functools

    import jax
    import marimo as mo

    jax.config.update("jax_enable_x64", True)

    from jfree import keep_compiled
    from jfree._layers.weights import BY_NAME as WEIGHT_LAWS
    from jfree.activations._names import BY_NAME as ACTIVATIONS
    from jfree.explorer import _model as model, _svg as html

    _directory = keep_compiled()  # not shown
    return ACTIVATIONS, WEIGHT_LAWS, functools, html, mo, model


@app.cell
def _(model, mo):
    start = model.Settings()
    # The scales that a gradient step has led to, and what to say of it.
    get_step, set_step = mo.state((start.sigma_w, start.sigma_b, ""))
    get_sample, set_sample = mo.state(None)
    # The depth is for the slider to come, when the activation allows another; counts are of clicks that were answered:
    # a step moves sliders, and so runs its own cell again.
    kept = {"depth": start.depth, "steps": 0, "samples": 0}
    return get_sample, get_step, kept, set_sample, set_step, start


@app.cell
def _(ACTIVATIONS, WEIGHT_LAWS, functools, mo, model, start):
    _button = functools.partial(mo.ui.button, value=0, on_click=lambda count: count + 1)
    kind = mo.ui.dropdown(model.KINDS, start.kind, label="network")
    activation = mo.ui.dropdown(list(ACTIVATIONS), start.activation, label="activation")
    weights = mo.ui.dropdown(list(WEIGHT_LAWS), start.weights, label="weights")
    tuned = mo.ui.dropdown(["sigma_w", "sigma_w and sigma_b"], "sigma_w", label="step in")
    take_step = _button(label="Gradient step", tooltip="Downhill on isometry, the mean square of log s")
    draw_sample = _button(label="Sample", tooltip="Singular values of one network, at most 256 wide")
    return activation, draw_sample, kind, take_step, tuned, weights


@app.cell
def _(kind, mo, model, start):
    _label = "width, last / first" if kind.value == model.MLPS else "width, branch / stream"
    ratio = mo.ui.slider(steps=model.RATIOS, value=start.ratio, label=_label, show_value=True, full_width=True)
    scale = mo.ui.slider(*model.SCALE, 0.005, start.scale, label="scale of branches", show_value=True, full_width=True)
    return ratio, scale


@app.cell
def _(model, activation, kept, kind, mo):
    _deepest = model.deepest(kind.value, activation.value)
    kept["depth"] = min(kept["depth"], _deepest)
    depth = mo.ui.slider(
        1,
        _deepest,
        1,
        kept["depth"],
        label="depth",
        show_value=True,
        full_width=True,
        on_change=lambda value: kept.update(depth=value),
    )
    return (depth,)


@app.cell
def _(model, get_step, mo):
    def _scale(label, ends, value):
        value = min(max(value, ends[0]), ends[1])
        return mo.ui.slider(*ends, 0.005, value, label=label, show_value=True, full_width=True)

    _sigma_w, _sigma_b, note = get_step()
    sigma_w = _scale("sigma_w", model.SIGMA_W, _sigma_w)
    sigma_b = _scale("sigma_b", model.SIGMA_B, _sigma_b)
    return note, sigma_b, sigma_w


@app.cell
def _(activation, depth, draw_sample, kind, mo, model, note, ratio, scale, sigma_b, sigma_w, take_step, tuned, weights):
    _of_branches = [scale] if kind.value == model.BLOCKS else []
    _scales = [kind, activation, weights, depth, ratio, sigma_w, sigma_b, *_of_branches]
    _below = [mo.md("---"), tuned, take_step, *([mo.md(note)] if note else []), mo.md("---"), draw_sample]
    mo.sidebar(mo.vstack([mo.md("## jfree explore"), *_scales, *_below], gap=0.75), width="340px")
    return


@app.cell
def _(model, activation, depth, kind, ratio, scale, sigma_b, sigma_w, weights):
    settings = model.Settings(
        activation.value,
        weights.value,
        depth.value,
        ratio.value,
        float(sigma_w.value),
        float(sigma_b.value),
        kind.value,
        float(scale.value),
    )
    return (settings,)


@app.cell
def _(model, mo, settings):
    if model.is_compiled(settings):
        picture = model.picture(settings)
    else:
        with mo.status.spinner(f"Compiling for {settings.activation}, once", remove_on_exit=True):
            picture = model.picture(settings)
    return (picture,)


@app.cell
def _(html, get_sample, mo, picture, settings):
    _sample = get_sample()
    _shown = _sample if _sample is not None and _sample.settings == settings else None
    mo.Html(html.density(picture, _shown))
    return


@app.cell
def _(model, html, mo, picture, settings):
    _shown = [mo.Html(html.numbers(picture, settings.kind == model.BLOCKS))]
    if settings.kind == model.MLPS:
        _phases = model.phases(settings.activation)
        _shown.insert(0, mo.Html(html.phase_diagram(_phases, settings, model.SIGMA_W, model.SIGMA_B)))
    mo.hstack(_shown, justify="start", gap=2, wrap=True)
    return


@app.cell
def _(model, draw_sample, kept, mo, set_sample, settings):
    if draw_sample.value > kept["samples"]:
        kept["samples"] = draw_sample.value
        with mo.status.spinner("Sampling", remove_on_exit=True):
            set_sample(model.sample(settings, seed=0))
    return


@app.cell
def _(kept, model, mo, set_step, settings, take_step, tuned):
    if take_step.value > kept["steps"]:
        kept["steps"] = take_step.value
        with mo.status.spinner("Taking a gradient step", remove_on_exit=True):
            _new, _note = model.gradient_step(settings, both=tuned.value != "sigma_w")
        set_step((_new.sigma_w, _new.sigma_b, _note))
    return


if __name__ == "__main__":
    app.run()
