"use strict";
// The progress of a job, which is read every two seconds while the tab is visible, until the job has ended.
(() => {
  const section = document.querySelector("[data-job]");
  if (!section) return;
  const progress = section.querySelector("[data-progress]");
  const notice = section.querySelector("[data-notice]");
  const ended = () => !["waiting", "running"].includes(progress.querySelector("[data-state]").dataset.state);
  const stop = (text) => {
    notice.textContent = text;
    notice.hidden = !text;
  };
  const read = async () => {
    if (document.hidden) return true;
    const asked = { headers: { "X-Requested-With": "fetch" }, signal: AbortSignal.timeout(5000) };
    const answer = await fetch(section.dataset.job, asked).catch(() => null);
    if (answer?.redirected || answer?.status === 403) {
      stop("You are signed out, so this page is not updated any more. The job goes on.");
      return false;
    }
    if (!answer?.ok) {
      stop("The server does not answer. The page tries again.");
      return true;
    }
    progress.innerHTML = await answer.text();
    stop("");
    if (ended()) section.querySelector("[data-cancel]")?.remove();
    return !ended();
  };
  const loop = async () => {
    if (await read()) setTimeout(loop, 2000);
  };
  if (!ended()) setTimeout(loop, 2000);
})();
