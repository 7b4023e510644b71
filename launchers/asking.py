"""What the services say today, for `launch plan --live`: offers, and what is left of a quota."""

from launchers.target import Offer, Refused

_ANY_PRICE = 128.0  # dollars an hour, the most that Vast.ai takes


def offers(gpu: str) -> list[Offer]:
    """What Vast.ai offers of a card, the cheapest hour first. Raises Away, Refused."""
    from launchers.vast.client import Client
    from launchers.vast.order import VastOptions
    from launchers.vast.target import Vast

    try:
        client = Client()
    except ValueError as error:
        raise Refused(str(error)) from error
    wanted = VastOptions(gpu=gpu, max_price=_ANY_PRICE)
    return Vast(client, wanted, lambda gpu, gpus: None, lambda seconds: {}).offers(())


def quota() -> float:
    """Hours of GPU time that Kaggle gives this week. Raises Away, Refused."""
    from launchers.kaggle.client import Client

    told = Client().quota()
    if told is None:
        raise Refused("Kaggle does not say how much is left of this week's quota")
    return told.left / 3600
