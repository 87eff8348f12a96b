defmodule Consumer.MixProject do
  use Mix.Project

  def project do
    [
      app: :consumer,
      version: "0.1.0",
      deps: [{:py_reactor, git: "PY_REACTOR_GIT", branch: "main", manager: :rebar3}]
    ]
  end
end
