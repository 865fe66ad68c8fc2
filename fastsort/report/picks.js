"use strict";
// Circles are drawn from the places of each picture; the slider decides which of them are picked.
const space = "http://www.w3.org/2000/svg";
const cut = document.getElementById("cut");
if (cut) {
  const pictures = [...document.querySelectorAll("figure svg")].map(svg => {
    const circles = JSON.parse(svg.dataset.places).map(([x, y, probability, reason]) => {
      const circle = document.createElementNS(space, "circle");
      circle.setAttribute("cx", x);
      circle.setAttribute("cy", y);
      circle.setAttribute("r", svg.dataset.radius);
      const title = document.createElementNS(space, "title");
      title.textContent = `probability ${probability}` + (reason ? `, ${reason}` : "");
      circle.append(title);
      svg.append(circle);
      return [circle, probability];
    });
    return { svg, circles, number: svg.parentElement.querySelector(".number") };
  });
  const rejected = document.getElementById("rejected");
  const area = document.getElementById("area");
  const draw = () => {
    const least = Number(cut.value);
    document.getElementById("value").textContent = least.toFixed(2);
    for (const { svg, circles, number } of pictures) {
      let kept = 0;
      for (const [circle, probability] of circles) {
        const picked = probability >= least;
        kept += picked;
        circle.setAttribute("class", picked ? "kept" : "rejected");
        circle.style.display = picked || rejected.checked ? "" : "none";
      }
      number.textContent = `${kept.toLocaleString("en")} picked`;
      svg.querySelector(".area").style.display = area.checked ? "" : "none";
    }
  };
  for (const input of [cut, rejected, area]) input.addEventListener("input", draw);
  draw();
}
