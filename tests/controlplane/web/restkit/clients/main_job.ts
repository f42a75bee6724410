// The main job by a generated client of TypeScript: `node main_job.js URL KEY` prints what it saw as JSON.

import createClient from "openapi-fetch";
import type { components, paths } from "./sluicegate.js";

const [url, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function certain<T>(value: T | undefined, error: unknown): T {
  if (value === undefined) throw new Error(JSON.stringify(error));
  return value;
}

type Schemas = components["schemas"];

// A change answers with what it has done, or with what it would do if it has ?dry_run=true. Only then there is a field
// dry_run, by which the compiler tells the two types apart.
function isTried<T extends object>(value: T): value is Extract<T, { dry_run: true }> {
  return "dry_run" in value;
}

function done<T extends object>(value: T | undefined, error: unknown): Exclude<T, { dry_run: true }> {
  const found = certain(value, error);
  if (isTried(found)) throw new Error(`only tried: ${JSON.stringify(found)}`);
  return found as Exclude<T, { dry_run: true }>;
}

function tried<T extends object>(value: T | undefined, error: unknown): Extract<T, { dry_run: true }> {
  const found = certain(value, error);
  if (!isTried(found)) throw new Error(`not tried: ${JSON.stringify(found)}`);
  return found;
}

function problem(error: unknown): Schemas["Problem"] {
  if (typeof error !== "object" || error === null || !("code" in error)) throw new Error(JSON.stringify(error));
  return error as Schemas["Problem"];
}

const madePolicy = await client.POST("/api/v1/policies", {
  body: {
    slug: "api",
    name: "API",
    limits: [{ name: "per-minute", algorithm: "fixed_window", quota: 60, window_seconds: 60 }],
  },
});
const policy = done(madePolicy.data, madePolicy.error);

const trial = await client.POST("/api/v1/projects", {
  params: { query: { dry_run: "true" } },
  body: { slug: "tried", name: "Tried", policy: "api" },
});
const onlyTried = tried(trial.data, trial.error);
const always: true = onlyTried.dry_run;
const trialOfChange = await client.PATCH("/api/v1/policies/{slug}", {
  params: { path: { slug: "api" }, query: { dry_run: "true" } },
  body: { name: "Tried" },
});
const changedFields = tried(trialOfChange.data, trialOfChange.error).diff.flatMap((one) => one.changes);

const chat = { slug: "chat", name: "Chat", policy: "api" };
const once = { params: { header: { "Idempotency-Key": '"once"' } }, body: chat };
const madeProject = await client.POST("/api/v1/projects", once);
const project = done(madeProject.data, madeProject.error);
const again = await client.POST("/api/v1/projects", once);
const replacement = await client.PUT("/api/v1/projects/{slug}", {
  params: { path: { slug: "chat" } },
  body: { name: "Chat", policy: "api" },
});
const replaced = done(replacement.data, replacement.error);
const taken = await client.POST("/api/v1/projects", { body: { slug: "chat", name: "Chat" } });

const tokens: { id: string; secret: string }[] = [];
for (let i = 0; i < 3; i++) {
  const made = await client.POST("/api/v1/projects/{slug}/tokens", {
    params: { path: { slug: "chat" } },
    body: { name: `token-${i}` },
  });
  tokens.push(done(made.data, made.error));
}
const byId = (at: number) => ({ path: { id: tokens[at].id } });
const rotation = await client.POST("/api/v1/tokens/{id}/rotate", { params: byId(0) });
const rotated = done(rotation.data, rotation.error);
const renaming = await client.PATCH("/api/v1/tokens/{id}", { params: byId(1), body: { name: "renamed" } });
const renamed = done(renaming.data, renaming.error);
const revocation = await client.POST("/api/v1/tokens/{id}/revoke", { params: byId(2) });
const revoked = done(revocation.data, revocation.error);

const raised = await client.POST("/api/v1/overrides", {
  body: { limit: "api/per-minute", token: tokens[1].id, quota: 90, reason: "a launch" },
});
const override = done(raised.data, raised.error);
await client.DELETE("/api/v1/overrides/{id}", { params: { path: { id: override.id } } });

const slug = { path: { slug: "api" } };
const seen = await client.GET("/api/v1/policies/{slug}", { params: slug });
const lost = await client.PATCH("/api/v1/policies/{slug}", {
  params: { ...slug, header: { "If-Match": '"0"' } },
  body: { name: "x" },
});
const changed = await client.PATCH("/api/v1/policies/{slug}", {
  params: { ...slug, header: { "If-Match": seen.response.headers.get("ETag")! } },
  body: { name: "The API" },
});
const fresh = done(changed.data, changed.error);

const pages: string[][] = [];
let cursor: string | undefined;
do {
  const listed = await client.GET("/api/v1/tokens", { params: { query: { project: "chat", page_size: 2, cursor } } });
  const page = certain(listed.data, listed.error);
  pages.push(page.results.map((token) => token.name));
  cursor = page.next_cursor ?? undefined;
} while (cursor);

const audited = await client.GET("/api/v1/audit", { params: { query: { page_size: 100 } } });
const audit = certain(audited.data, audited.error);
const projects = await client.GET("/api/v1/projects");

console.log(
  JSON.stringify({
    policy: [policy.slug, fresh.name, policy.limits!.map((limit) => limit.quota)],
    project: [project.slug, project.policy, again.response.headers.get("Idempotency-Replayed"), replaced.slug],
    tried: [always, onlyTried.status, onlyTried.changed, changedFields.map((one) => one.field)],
    problems: [problem(taken.error).status, problem(lost.error).status],
    secrets: [tokens[0].secret, rotated.secret].map((secret) => secret.startsWith("sg_live_")),
    tokens: [renamed.name, revoked.revoked_at !== null, override.quota],
    pages,
    actions: [...new Set(audit.results.map((entry) => entry.action))].sort(),
    projects: certain(projects.data, projects.error).results.map((one) => one.slug),
  }),
);
