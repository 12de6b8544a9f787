setInterval(async () => {
  const live = document.getElementById("live");
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    if (!answer.ok) throw answer.status;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    live.replaceWith(fresh);
  } catch (e) {
    live.classList.add("stale");
  }
}, 2000);
