"use strict";
(function () {
  const test = JSON.parse(document.getElementById("test").textContent);
  const allRatings = ["quality", "intelligibility", "transcription", "diversity"];
  const questions = {
    quality: {
      title: "How natural does it sound?",
      hint: "Rate the sound only, whether or not you understand the word.",
      choices: ["Bad", "Poor", "Fair", "Good", "Excellent"],
    },
    intelligibility: {
      title: "How well can you understand it?",
      hint: "How certain you are which word is spoken.",
      choices: ["Not at all", "Hardly", "Partly", "Mostly", "Fully"],
    },
    transcription: { title: "Which digit do you hear?", hint: "Choose “none” if you hear no digit, or cannot tell." },
    diversity: {
      title: "How varied are these recordings?",
      hint: "Voices, ways of speaking, and words: could they come from many different people?",
      choices: ["All alike", "Little", "Somewhat", "Quite", "Very varied"],
    },
  };
  const byId = (id) => document.getElementById(id);
  let rater = "";
  let items = [];
  let state = { at: 0, answers: {} };
  let shownAt = 0;
  let played = new Set();
  let plays = 0;

  // --- Order: random, but the same whenever a rater opens the page again. ---

  function randomNumbers(text) {
    let seed = 2166136261;
    for (const letter of text) {
      seed = Math.imul(seed ^ letter.codePointAt(0), 16777619) >>> 0;
    }
    seed = seed || 1;
    return function () {
      seed ^= seed << 13;
      seed ^= seed >>> 17;
      seed ^= seed << 5;
      return (seed >>> 0) / 4294967296;
    };
  }

  function shuffled(list, random) {
    const result = list.slice();
    for (let last = result.length - 1; last > 0; last--) {
      const other = Math.floor(random() * (last + 1));
      [result[last], result[other]] = [result[other], result[last]];
    }
    return result;
  }

  function orderFor(name) {
    const random = randomNumbers(test.test + "/" + name);
    const clips = shuffled(test.clips, random).map((id) => ({ id: id, clips: [id], batch: false }));
    const batches = shuffled(Object.keys(test.batches), random)
      .map((id) => ({ id: id, clips: shuffled(test.batches[id], random), batch: true }));
    return clips.concat(batches);
  }

  // --- Storage: in some browsers, pages opened from a file have no local storage. ---

  const storage = {
    works: true,
    name: () => "listening-test/" + test.test + "/" + rater,
    read() {
      try {
        return JSON.parse(localStorage.getItem(this.name()));
      } catch {
        return null;
      }
    },
    write() {
      try {
        localStorage.setItem(this.name(), JSON.stringify(state));
      } catch {
        this.works = false;
      }
      byId("no-storage").hidden = this.works;
    },
  };

  // --- Views. ---

  function show(view, heading) {
    for (const name of ["welcome", "item", "done"]) {
      byId(name).hidden = name !== view;
    }
    heading.focus();
    window.scrollTo(0, 0);
  }

  function showItem() {
    storage.write();
    if (state.at >= items.length) {
      prepareFile();
      show("done", byId("done-title"));
      return;
    }
    const item = items[state.at];
    const answer = state.answers[item.id] || {};
    const kind = item.batch ? "Group of recordings" : "Recording";
    byId("item-title").textContent = kind + " (" + (state.at + 1) + " of " + items.length + ")";
    byId("progress").max = items.length;
    byId("progress").value = state.at;
    byId("players").className = item.batch ? "batch" : "";
    byId("players").replaceChildren(...item.clips.map((id, number) => player(id, item.batch ? number + 1 : 0)));
    const asked = test.ratings.filter((rating) => (rating === "diversity") === item.batch);
    byId("questions").replaceChildren(...asked.map((rating) => question(rating, answer[rating])));
    byId("problem").textContent = "";
    byId("back").hidden = state.at === 0;
    played = new Set(state.answers[item.id] ? item.clips : []);
    plays = 0;
    shownAt = Date.now();
    show("item", byId("item-title"));
  }

  function player(id, number) {
    const audio = document.createElement("audio");
    audio.controls = true;
    audio.preload = "auto";
    audio.src = "audio/" + id + ".wav";
    audio.setAttribute("aria-label", number ? "Recording " + number : "Recording");
    audio.addEventListener("play", function () {
      for (const other of byId("players").querySelectorAll("audio")) {
        if (other !== audio) {
          other.pause();
        }
      }
      played.add(id);
      plays += 1;
    });
    audio.addEventListener("error", function () {
      byId("problem").textContent = "A recording cannot be played: is the folder “audio” next to this page?";
    });
    return audio;
  }

  function question(rating, chosen) {
    const fieldset = document.createElement("fieldset");
    const legend = document.createElement("legend");
    const hint = document.createElement("span");
    hint.className = "hint";
    hint.textContent = questions[rating].hint;
    legend.append(questions[rating].title, hint);
    const choices = document.createElement("div");
    const words = questions[rating].choices;
    choices.className = words ? "choices" : "choices digits";
    if (words) {
      words.forEach((word, index) => choices.append(choice(rating, String(index + 1), word, chosen)));
    } else {
      "0123456789".split("").forEach((digit) => choices.append(choice(rating, digit, "", chosen)));
      choices.append(choice(rating, "none", "", chosen));
      choices.lastChild.className = "wide";
    }
    fieldset.append(legend, choices);
    return fieldset;
  }

  function choice(rating, value, word, chosen) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "radio";
    input.name = rating;
    input.value = value;
    input.required = true;
    input.checked = chosen === value;
    label.append(input, document.createTextNode(value));
    if (word) {
      const meaning = document.createElement("span");
      meaning.className = "soft";
      meaning.textContent = word;
      label.append(meaning);
    }
    return label;
  }

  // --- Navigation. ---

  function saveAnswers() {
    const item = items[state.at];
    const given = Object.fromEntries(new FormData(byId("answers")));
    const before = state.answers[item.id] || { seconds: 0, plays: 0 };
    state.answers[item.id] = Object.assign({}, given, {
      seconds: before.seconds + (Date.now() - shownAt) / 1000,
      plays: before.plays + plays,
      finished: new Date().toISOString(),
    });
  }

  function hasUnplayed(item) {
    return item.clips.some((id) => !played.has(id));
  }

  function next(event) {
    event.preventDefault();
    const item = items[state.at];
    const unanswered = Array.from(byId("questions").children).find((fieldset) => !fieldset.querySelector(":checked"));
    if (hasUnplayed(item)) {
      byId("problem").textContent = item.batch ? "Please listen to every recording first." : "Please listen first.";
      Array.from(byId("players").children)[item.clips.findIndex((id) => !played.has(id))].focus();
    } else if (unanswered) {
      byId("problem").textContent = "Please answer every question.";
      unanswered.querySelector("input").focus();
    } else {
      saveAnswers();
      state.at += 1;
      showItem();
    }
  }

  function back() {
    state.at -= 1;
    showItem();
  }

  function begin(event) {
    event.preventDefault();
    rater = byId("rater").value;
    items = orderFor(rater);
    state = storage.read() || { at: 0, answers: {} };
    showItem();
  }

  function prepareFile() {
    const lines = [["test", "rater", "item"].concat(allRatings, ["seconds", "plays", "finished"]).join(",")];
    for (const item of items) {
      const answer = state.answers[item.id];
      const ratings = allRatings.map((rating) => answer[rating] || "");
      const rest = [answer.seconds.toFixed(1), answer.plays, answer.finished];
      lines.push([test.test, rater, item.id].concat(ratings, rest).join(","));
    }
    const file = new Blob([lines.join("\n") + "\n"], { type: "text/csv" });
    URL.revokeObjectURL(byId("save").href);
    byId("save").href = URL.createObjectURL(file);
    byId("save").download = "ratings-" + test.test + "-" + rater + ".csv";
  }

  const amounts = [[test.clips.length, "recordings"], [Object.keys(test.batches).length, "groups of recordings"]]
    .filter(([count]) => count > 0).map(([count, what]) => count + " " + what);
  byId("amount").textContent = "You will rate " + amounts.join(" and then ") +
    ". Where a question has five answers, 1 is the lowest and 5 the highest.";
  byId("start").addEventListener("submit", begin);
  byId("answers").addEventListener("submit", next);
  byId("back").addEventListener("click", back);
  byId("again").addEventListener("click", back);
  storage.write(); // shows the warning before the test begins if this browser has no local storage
})();
