%%% The application: settings are checked first, so that a bad one stops the start with its name.
-module(py_reactor_app).

-behaviour(application).

%% application callbacks
-export([start/2, stop/1]).

%% @private
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    case py_reactor_settings:check() of
        {ok, Settings} -> py_reactor_sup:start_link(Settings);
        {error, _} = Error -> Error
    end.

%% @private
-spec stop(term()) -> ok.
stop(_State) ->
    ok.
