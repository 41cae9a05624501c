// Requests to the desk, with the annotator's key from the link. The key stands behind the # of the link, which no server and no log sees.

const BASE = new URL('../v1/review/', import.meta.url);
const NAME = 'cleanplate-review-key';

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function readKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get('key');
  if (given) {
    sessionStorage.setItem(NAME, given);
    localStorage.setItem(NAME, given);
    history.replaceState(null, '', location.pathname);
  }
  // of this tab first: two people may share a browser
  return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? '';
}

export const key = readKey();
export const base = BASE.href;

async function answered(response) {
  if (response.ok) return response.json();
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.detail ?? `the server answered ${response.status}`);
}

export async function get(path) {
  return answered(await fetch(new URL(path, BASE), { headers: { authorization: `Bearer ${key}` } }));
}

// keepalive: goes on when the page is closed; for small bodies, as browsers allow 64 KiB of such on their way
export async function post(path, body, keepalive = false) {
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
  return answered(await fetch(new URL(path, BASE), { method: 'POST', headers, body: JSON.stringify(body), keepalive }));
}
