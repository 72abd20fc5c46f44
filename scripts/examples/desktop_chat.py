"""A chat window over a loaded pair: ``desktop_chat.py [PAIR]``. Colors show which model wrote a token; a dial sets the rule.
Models load and answer in a thread of their own, which queues what Tk shows: one thread only uses Tk, and it never waits.
"""

import queue
import sys
import threading
import tkinter as tk
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from tkinter import ttk

import speccascade_local as sc

ORIGINS = {
    "accepted": ("#1a7f37", "drafter's, kept by the rule"),
    "matched": ("#0a7ea4", "drafter's, as the expert would"),
    "corrected": ("#b35900", "expert's, in place of a draft"),
    "bonus": ("#8250df", "expert's, after a kept draft"),
    "expert": ("#3b4a8f", "expert's, without a draft"),
    "dropped": ("#a8a0a0", "draft thrown away"),
}
PAPER, PANEL, INK, QUIET, ACCENT, LINE = "#ffffff", "#f3f2ef", "#24242a", "#77757a", "#3b4a8f", "#d5d2cc"


class Window(ttk.Frame):
    def __init__(self, root: tk.Tk, pair: str | None = None) -> None:
        self.root = root
        self.points = lambda *sizes: [round(size * root.winfo_fpixels("1p")) for size in sizes]  # sizes follow the screen's density
        super().__init__(root, padding=self.points(10))
        self.pack(fill="both", expand=True)
        self.acts, self.worker, self.stop, self.closing = queue.SimpleQueue(), ThreadPoolExecutor(1), threading.Event(), threading.Event()
        self.alpha, self.temperature, self.dropped = tk.DoubleVar(value=0.5), tk.DoubleVar(), tk.BooleanVar()
        root.protocol("WM_DELETE_WINDOW", self.close)
        look = ttk.Style(self.root)
        look.theme_use("clam")
        look.configure(".", background=PANEL, foreground=INK, bordercolor=LINE, lightcolor=PANEL, darkcolor=PANEL, troughcolor=LINE)
        look.configure("TButton", padding=self.points(9, 4), background=PAPER)
        look.map("Send.TButton", background=[("disabled", QUIET), ("active", INK), ("!disabled", ACCENT)], foreground=[("", PAPER)])
        top, legend, bottom = (ttk.Frame(self) for _ in range(3))
        for place, side in ((top, "top"), (legend, "bottom"), (bottom, "bottom")):
            place.pack(side=side, fill="x")
        ttk.Button(top, text="New conversation", command=self.begin_anew).pack(side="right")
        self.dial(top, "Rule", self.alpha, 1, lambda: self.chosen()["rule"], 18)
        self.dial(top, "Temperature", self.temperature, 1.5, lambda: f"{self.temperature.get():.2f}", 17)
        self.status = ttk.Label(bottom, foreground=QUIET)
        self.status.pack(side="bottom", fill="x", pady=self.points(4, 4))
        self.progress = ttk.Progressbar(bottom, maximum=1)
        self.progress.pack(side="bottom", fill="x", pady=self.points(6, 0))
        self.send = ttk.Button(bottom, text="Send", width=6, style="Send.TButton", state="disabled", command=self.ask_or_stop)
        self.send.pack(side="right", padx=self.points(8, 0))
        self.entry = ttk.Entry(bottom, font="TkTextFont")
        self.entry.pack(fill="x", expand=True, ipady=self.points(4))
        self.entry.bind("<Return>", lambda _: self.busy or self.ask_or_stop())
        self.root.bind("<Escape>", lambda _: self.stop.set())
        self.text = tk.Text(self, wrap="word", background=PAPER, foreground=INK, relief="flat", width=72, height=17, state="disabled")
        scroll = ttk.Scrollbar(self, command=self.text.yview)
        scroll.pack(side="right", fill="y", pady=self.points(8, 8))
        self.text.pack(fill="both", expand=True, pady=self.points(8, 8))
        self.text.configure(font=("TkTextFont", 12), spacing3=self.points(3), borderwidth=self.points(8), yscrollcommand=scroll.set)
        self.text.tag_configure("question", font=("TkTextFont", 12, "bold"), spacing1=self.points(8))
        for at, (origin, (colour, meaning)) in enumerate(ORIGINS.items()):
            self.text.tag_configure(origin, foreground=colour, overstrike=origin == "dropped", elide=origin == "dropped")
            ttk.Label(legend, text=f"▇ {meaning}", foreground=colour).grid(row=at // 3, column=at % 3, sticky="w", padx=self.points(0, 14))
        self.dropped.trace_add("write", lambda *_: self.text.tag_configure("dropped", elide=not self.dropped.get()))
        ttk.Checkbutton(legend, text="show", variable=self.dropped).grid(row=1, column=3)
        self.busy, self.conversation = True, None
        self.work = self.worker.submit(sc.load, pair, on_progress=partial(self.post, self.show_progress))
        self.listen()

    def dial(self, place, title, value, end, shown, width) -> None:
        label, snap = ttk.Label(place, width=width), lambda _: value.set(round(value.get(), 2))
        ttk.Scale(place, variable=value, to=end, length=self.points(90), command=snap).pack(side="left")
        label.pack(side="left", padx=self.points(5, 8))
        value.trace_add("write", lambda *_: label.configure(text=f"{title}: {shown()}"))
        value.set(value.get())

    def chosen(self) -> dict[str, object]:
        return {"rule": f"token_v3:{a:.2f}" if (a := self.alpha.get()) else "strict", "temperature": self.temperature.get()}

    def post(self, act, *arguments) -> None:  # the only one that runs in the worker's thread
        if self.closing.is_set():
            raise InterruptedError("the window is closed")
        self.acts.put(partial(act, *arguments))

    def listen(self) -> None:
        done = self.busy and self.work.done()  # before the queue is emptied: what the work sent comes first
        while not self.acts.empty():
            self.acts.get()()
        if done:
            self.busy = False
            self.progress.pack_forget()
            if error := self.work.exception():
                self.write(f"\n{error}\n", "corrected")
            elif not self.conversation:
                self.conversation = sc.Conversation(self.work.result())
                self.status.configure(text=f"{self.conversation.runtime.pair.name} is loaded")
                self.entry.focus_set()
            self.send.configure(text="Send", state="normal" if self.conversation else "disabled")
        self.root.after(33, self.listen)

    def show_progress(self, role: str, done: float) -> None:
        self.progress.configure(value=done)
        self.status.configure(text=f"{'measuring this machine' if role == 'profile' else f'loading the {role}'}: {done:.0%}")

    def ask_or_stop(self) -> None:
        question = self.entry.get().strip()
        if self.busy:
            self.stop.set()
        elif question and self.conversation:
            self.entry.delete(0, "end")
            self.write("\n", "", f"{question}\n", "question")
            self.stop.clear()
            self.send.configure(text="Stop")
            hooks = {"cancel": self.stop, "on_chunk": partial(self.post, self.show)}
            self.busy, self.work = True, self.worker.submit(self.conversation.ask, question, **self.chosen(), **hooks)

    def show(self, chunk: sc.Chunk) -> None:
        stats = chunk.stats
        for token in chunk.tokens:
            self.write(token.dropped or "", "dropped", token.text, token.origin)
        calls = f"{stats.accepted} of them the drafter's, {stats.expert_calls} calls of the expert"
        self.status.configure(text=f"{stats.tokens} tokens, {calls}, {stats.tokens_per_s:.0f} tokens/s ({chunk.finish_reason or '…'})")

    def write(self, *texts_and_tags: str, start: str = "end") -> None:
        self.text.configure(state="normal")
        self.text.delete(start, "end")
        self.text.insert("end", *texts_and_tags)
        self.text.configure(state="disabled")
        self.text.see("end")

    def begin_anew(self) -> None:
        if self.conversation and not self.busy:
            self.conversation.reset()
            self.write("", start="1.0")

    def close(self) -> None:  # the window goes at once, the program when the block in the making is there
        self.closing.set()
        self.stop.set()
        self.root.withdraw()
        if self.busy:
            self.root.after(33, self.close)
        else:
            self.conversation and self.conversation.runtime.close()
            self.root.destroy()


if __name__ == "__main__":
    sc.freeze_support()  # in a frozen application, child processes are this program
    Window(tk.Tk(className="speccascade"), *sys.argv[1:2]).mainloop()
