// The controls of a view in a page, without a kernel: views.py puts this and the pictures into it.
for (const root of document.querySelectorAll(".massact-view:not([data-ready])")) {
  root.dataset.ready = "";
  const {pictures, views} = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const controls = [...root.querySelectorAll("select, input")], figures = [...root.querySelectorAll("figure")];
  const show = event => {
    let chosen = controls.map(it => Number(it.value));
    if (!(chosen in views)) { // no picture here: the control that was moved stays, the others follow to the most similar
      const moved = controls.indexOf(event?.target), weight = i => i === moved ? 100 : 1;
      const alike = key => key.split(",").reduce((sum, n, i) => sum + weight(i) * (Number(n) === chosen[i]), 0);
      chosen = Object.keys(views).reduce((a, b) => alike(b) > alike(a) ? b : a).split(",");
      controls.forEach((it, i) => { it.value = chosen[i]; });
    }
    for (const it of root.querySelectorAll("input")) {
      it.nextElementSibling.textContent = JSON.parse(it.dataset.values)[it.value];
      it.setAttribute("aria-valuetext", it.nextElementSibling.textContent);
    }
    const {shown, caption} = views[chosen];
    figures.forEach((it, i) => {
      const [words, place] = shown[i], image = it.querySelector("img");
      it.querySelector("figcaption").textContent = image.alt = words;
      image.src = "data:image/webp;base64," + pictures[place];
    });
    root.querySelector("p").textContent = caption;
  };
  for (const it of controls) it.addEventListener("input", show);
  root.querySelector("div").style.display = "block"; // by style: themes override the attribute `hidden`
  if (controls.length) show();
}
