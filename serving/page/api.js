/** The server as the page sees it. Only mask crops and patches travel after the upload. */

const KEY = "cleanplate.key";
const WAIT_LIMIT_S = 120;
const LOST_WAIT_S = 2;

/** An answer that is no success: `status`, `title` and `detail` as in RFC 9457; `said` where the service itself gave them. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title || `the server answered ${status}`);
    this.name = "Problem";
    this.status = status;
    this.said = false;
  }
}

export class Api {
  /**
   * @param {() => Promise<string|null>} askKey what to do where the server wants a key; null gives up
   * @param {(seconds: number) => void} onBusy told before a wait, where the server is busy
   */
  constructor(askKey, onBusy) {
    this.askKey = askKey;
    this.onBusy = onBusy;
  }

  /** @returns {Promise<{id: string, width: number, height: number}>} the upright photo's id and size */
  async upload(blob, name, signal) {
    const form = new FormData();
    form.append("image", blob, name);
    return (await this.#send("/v1/images", { method: "POST", body: form, signal })).json();
  }

  /** Forget a photo; whether that worked does not matter, since it expires by itself. */
  forget(image) {
    this.#send(`/v1/images/${image}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  /**
   * Erase what a mask covers from the photo, or from the earlier result `base`.
   * @param {{blob: Blob, x: number, y: number}} mask
   */
  async erase(image, mask, { base, candidates, seed }, signal) {
    const form = new FormData();
    form.append("mask", mask.blob, "mask.png");
    for (const [name, value] of Object.entries({ x: mask.x, y: mask.y, candidates, seed, base })) {
      if (value !== undefined && value !== null) form.append(name, String(value));
    }
    return (await this.#send(`/v1/images/${image}/erase`, { method: "POST", body: form, signal })).json();
  }

  /** @returns {Promise<Blob>} a mask of the photo's size, white = object */
  async segment(image, { base, points, box }, signal) {
    const form = new FormData();
    form.append("image_id", image);
    if (base) form.append("base", base);
    if (points) form.append("points", JSON.stringify(points));
    if (box) form.append("box", JSON.stringify(box));
    return (await this.#send("/v1/segment", { method: "POST", body: form, signal })).blob();
  }

  /** The whole picture: in the upload's format, or as `format`. */
  async result(image, result, format, signal) {
    const query = format ? `?format=${format}` : "";
    const answer = await this.#send(`/v1/images/${image}/results/${result}${query}`, { signal });
    return { blob: await answer.blob(), name: fileName(answer.headers.get("content-disposition")) };
  }

  async models() {
    return (await this.#send("/v1/models", {})).json();
  }

  async #send(path, options) {
    const until = Date.now() + WAIT_LIMIT_S * 1000;
    let lost = false;
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = key ? { Authorization: `Bearer ${key}` } : {};
      let answer;
      try {
        answer = await whole(await fetch(path, { ...options, headers }));
      } catch (error) {
        if (error.name === "AbortError") throw error;
        answer = null;
      }
      if (answer?.ok) return answer;
      const problem = answer ? await problemOf(answer) : new Problem(0, "no answer", "The server does not answer. Is it still running?");
      // what answered died at it, or is being replaced: the same request again gives the same bytes
      if (!lost && (!answer || (answer.status >= 500 && !problem.said))) {
        lost = true;
        this.onBusy(LOST_WAIT_S);
        await pause(LOST_WAIT_S * 1000, options.signal);
        continue;
      }
      if (!answer) throw problem;
      if (answer.status === 401) {
        const entered = await this.askKey();
        if (!entered) throw problem;
        sessionStorage.setItem(KEY, entered);
        continue;
      }
      const wait = Number(answer.headers.get("retry-after"));
      if (![429, 503].includes(answer.status) || !(wait > 0) || Date.now() + wait * 1000 > until) throw problem;
      this.onBusy(wait);
      await pause(wait * 1000, options.signal);
    }
  }
}

/** An answer whose body has arrived: it can break off, too. */
async function whole(answer) {
  if (answer.status === 204) return answer;
  const { status, headers } = answer;
  return new Response(await answer.blob(), { status, headers });
}

async function problemOf(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // a proxy's page, or nothing at all: the status is all that there is
  }
  const detail = typeof said.detail === "string" ? said.detail : "";
  const problem = new Problem(answer.status, said.title, detail);
  problem.said = said.status === answer.status;
  return problem;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}

/** The name in a Content-Disposition header; RFC 6266's `filename*` wins. */
function fileName(header) {
  const extended = /filename\*=UTF-8''([^;]+)/i.exec(header || "");
  if (extended) return decodeURIComponent(extended[1]);
  return /filename="?([^";]+)"?/i.exec(header || "")?.[1] ?? null;
}
