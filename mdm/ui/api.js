// The REST interface. A promise resolves only on 2xx; everything else is an ApiError with code, message and hint.

export class ApiError extends Error {
  constructor(status, body) {
    super(body.message || `HTTP status ${status}`);
    this.status = status;
    this.code = body.code || "http_error";
    this.hint = body.hint || "";
  }
}

const KEY = "quarry-token";
let onSignedOut = () => {};

export const token = () => sessionStorage.getItem(KEY);
export const signIn = (t) => sessionStorage.setItem(KEY, t);
export function signOut(why) { sessionStorage.removeItem(KEY); onSignedOut(why); }
export const whenSignedOut = (f) => { onSignedOut = f; };

export async function request(method, path, body, more) {
  const headers = { Authorization: `Bearer ${token() || ""}`, ...(more || {}) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(20000), cache: "no-store" });
  } catch (e) {
    throw new ApiError(0, { code: "no_answer", message: `the MDM does not answer (${e.name})`,
      hint: "is it running, and can this host reach it?" });
  }
  const text = await answer.text();
  let value = null;
  try { value = text ? JSON.parse(text) : null; } catch { value = null; }
  if (!answer.ok) {
    const refused = new ApiError(answer.status, value && typeof value === "object" ? value : {});
    if (answer.status === 401 && token()) signOut(refused);
    throw refused;
  }
  return { status: answer.status, value };
}

export const get = async (path) => (await request("GET", path)).value;
export const seg = (v) => encodeURIComponent(String(v));

// A key that makes a create safe to send again.
export function idempotencyKey() {
  const b = crypto.getRandomValues(new Uint8Array(16));
  return "ui-" + Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
}

// Waits for the task of a 202; `told` gets what it waits for. Resolves when it is done, rejects when it failed or nobody looks any more.
export async function settled(result, told) {
  if (result.status !== 202 || !result.value || !result.value.task_id) return result.value;
  for (;;) {
    const t = await get(`/tasks/${seg(result.value.task_id)}`);
    if (t.state === "done") return t;
    if (t.state === "failed" || t.state === "cancelled") throw new ApiError(409, { code: "task_failed", message: t.detail || `task ${t.id} ${t.state}`, hint: "" });
    const seen = told(`still going on as task ${t.id}${t.waiting_for && t.waiting_for.length ? ": " + t.waiting_for.join("; ") : ""}`);
    if (seen === false) throw new ApiError(202, { code: "still_running", message: `task ${t.id} goes on`, hint: "" });
    await new Promise((r) => setTimeout(r, 1000));
  }
}

export async function timeline(kind, id, metric, secs, step) {
  const q = new URLSearchParams({ kind, id, metric, seconds: secs, step });
  // The step of the answer is the one that counts: old rows are coarser.
  const { points, step: got } = await get(`/metrics/timeline?${q}`);
  return { points, step: got };
}
