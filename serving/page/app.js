/** The page: its parts, put together. */

import { Api } from "./api.js";
import { Candidates } from "./candidates.js";
import { askKey, prepareHelp, toggleHelp } from "./dialogs.js";
import { Editor } from "./editor.js";
import { Files } from "./files.js";
import { Keyboard } from "./keyboard.js";
import { Panel } from "./panel.js";
import { Pointer } from "./pointer.js";
import { Session } from "./session.js";
import { Slider } from "./slider.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";
import { Hand } from "./tools.js";

const status = new Status(document.getElementById("status"));
const api = new Api(askKey, (seconds) => status.say(`The server is busy; next try in ${seconds} s. Esc cancels.`, "busy"));
const editor = new Editor(api, (text, kind) => status.say(text, kind));
const stage = new Stage(document.getElementById("stage"), editor);
const hand = new Hand(editor, stage);
const files = new Files(editor);
const slider = new Slider(stage, editor);
const actions = {
  open: () => files.choosePhoto(),
  download: () => files.download(),
  copy: () => files.copy(),
  exportMask: () => files.exportMask(),
  slider: () => slider.toggle(),
  help: toggleHelp,
};
const keyboard = new Keyboard(editor, stage, hand, actions);
new Pointer(stage, editor, hand, keyboard);
new Panel(editor, stage, actions);
new Candidates(editor, document.getElementById("candidates"));
prepareHelp();
await new Session(editor).load();
document.documentElement.dataset.ready = "yes";
