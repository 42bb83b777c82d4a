"""Views and targets of noise, and sessions of them."""

from conftest import random_views

from efficient_lvsm_jax import Session

VIEWS = random_views(5, seed=11)
TARGETS = random_views(11, seed=12)
SIZE = (16, 24)


def view(index):
    return VIEWS.image[0, index], VIEWS.c2w[0, index], VIEWS.fxfycxcy[0, index]


def targets(count=2):
    return TARGETS.c2w[0, :count], TARGETS.fxfycxcy[0, :count], SIZE


def session_of(model, indices, **options):
    session = Session(model, **options)
    return session, [session.add(*view(index)) for index in indices]
