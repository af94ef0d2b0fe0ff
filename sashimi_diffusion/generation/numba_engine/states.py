"""State spaces of a step, whose states move once per span of samples: they are read once for all of these.

With x the state before a span, its sample j gives

    y[j] = C Ā^(j+1) x + Σ_{i ≤ j} k[i] u[j - i],    k[i] = C Ā^i B̄, and D in k[0].

The first terms are made for the whole span when it begins, by the recurrence without inputs. The others take a few
numbers of the kernel and the inputs of the span so far. When the next span begins, the states absorb these.

The span of a vector of features has a row for each of its SPAN samples: the first terms until the sample comes, its
inputs from then on. Features are filled up to whole vectors with zeros, which stay zeros. In the weights lie, vector by
vector, the kernel of all features, and then a, b, C and, if the system is NPLR, u and v, state by state, C and v times
two.
"""

from numba import njit

from sashimi_diffusion.generation.numba_engine.spans import (
    SPAN,
    TOGETHER,
    convolve,
    parameters_size,
    span_beginning,
)
from sashimi_diffusion.generation.numba_engine.vectors import LANES, whole_vectors

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}
_begin_nplr_span, _begin_nplr_spans = span_beginning(True, 1), span_beginning(True, TOGETHER)
_begin_diagonal_span, _begin_diagonal_spans = span_beginning(False, 1), span_beginning(False, TOGETHER)


@njit(**_OPTIONS)
def state_step(nplr, weights, begin, n, width, states, offset, spans, place, done, first, last, u, y, scratch):
    """One step of the state spaces of some features: inputs ``u``, outputs ``y`` (streams, features).

    Args:
        nplr, weights, begin: kind of the systems, and where their parameters begin.
        n, width: states of a feature, features of the layer.
        states, offset: memory of all states, and the numbers per stream before this layer's.
        spans, place: the same of spans.
        done: samples that the layer has seen since its state was loaded.
        first, last: the features to do; the first of a vector to the last of one or of all.
        u, y: ``y`` has room for whole vectors.
        scratch: memory for the states of a vector of features in TOGETHER streams.

    Returns:
        where the layer's other weights begin.
    """
    n_streams, sample = u.shape[0], done % SPAN
    parameters = begin + SPAN * whole_vectors(width)
    for feature in range(first, last, LANES):
        span = (place + feature * SPAN) * n_streams
        if sample == 0:
            at, state = parameters + parameters_size(nplr, feature, n), (offset + feature * 2 * n) * n_streams
            _begin_spans(nplr, weights, at, n, states, state, spans, span, done > 0, n_streams, scratch)
        kernel = begin + feature * SPAN
        for stream in range(n_streams):
            convolve(weights, kernel, spans, span + stream * SPAN * LANES, sample, u, y, stream, feature)
    return parameters + parameters_size(nplr, width, n)


@njit(**_OPTIONS)
def _begin_spans(nplr, weights, begin, n, states, place, spans, span, absorbing, n_streams, scratch):
    """The span of a vector of features begins, in every stream."""
    stream = 0
    while stream < n_streams:
        count = TOGETHER if stream + TOGETHER <= n_streams else 1
        if nplr and count == 1:
            _begin_nplr_span(weights, begin, n, states, place, spans, span, absorbing, scratch)
        elif nplr:
            _begin_nplr_spans(weights, begin, n, states, place, spans, span, absorbing, scratch)
        elif count == 1:
            _begin_diagonal_span(weights, begin, n, states, place, spans, span, absorbing, scratch)
        else:
            _begin_diagonal_spans(weights, begin, n, states, place, spans, span, absorbing, scratch)
        place += count * 2 * n * LANES
        span += count * SPAN * LANES
        stream += count
