"use strict";

const shown = document.getElementById("permission");

async function ask() {
  try {
    const answer = await (await fetch("permission")).json();
    shown.className = answer.state;
    shown.textContent = answer.text;
  } catch (problem) {
    shown.className = "waiting";
    shown.textContent = "this KMS does not answer; perhaps it went on to the service";
  }
  setTimeout(ask, 5000);
}

ask();
