FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY campaigns campaigns
COPY workers workers
COPY migrations migrations
RUN python -m venv /opt/campaigns \
 && /opt/campaigns/bin/pip install --no-cache-dir --constraint constraints.txt '.[postgresql,flower]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/campaigns campaigns \
 && install -d -o campaigns -g campaigns /var/lib/campaigns /var/lib/campaigns/.campaigns
COPY --from=build /opt/campaigns /opt/campaigns
ENV PATH=/opt/campaigns/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /var/lib/campaigns
USER campaigns
CMD ["campaigns", "--help"]
