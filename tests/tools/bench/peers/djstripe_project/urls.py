"""Where dj-stripe's documentation mounts its webhook view."""

from django.urls import include, path

urlpatterns = [path("stripe/", include("djstripe.urls", namespace="djstripe"))]
