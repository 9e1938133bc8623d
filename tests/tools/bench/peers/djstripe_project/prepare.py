"""Makes the tables, and what a synchronised project has: the account, its key, an endpoint."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from django.conf import settings  # noqa: E402 - after the set-up
from django.core.management import call_command  # noqa: E402
from djstripe.models import Account, APIKey, WebhookEndpoint  # noqa: E402

call_command("migrate", verbosity=0)
account = Account.objects.create(id="acct_bench", livemode=False)
APIKey.objects.create(
    secret=settings.STRIPE_TEST_SECRET_KEY,
    type="secret",
    livemode=False,
    djstripe_owner_account=account,
)
WebhookEndpoint.objects.create(
    djstripe_owner_account=account,
    id="we_bench",
    livemode=False,
    enabled_events=["*"],
    secret=os.environ["SIGNATURE_KEY"],
    status="enabled",
    url="http://127.0.0.1/stripe/webhook",
    djstripe_uuid=os.environ["ENDPOINT"],
    djstripe_tolerance=32_000,  # bodies are signed beforehand
)
