%%% The top of the supervision tree. No child depends on another's process: Python never ends once it
%%% runs, and the tables of contexts, listeners and functions belong to this supervisor.
-module(py_reactor_sup).

-behaviour(supervisor).

%% API
-export([start_link/1]).

%% supervisor callbacks
-export([init/1]).

-spec start_link(py_reactor_settings:settings()) -> supervisor:startlink_ret().
start_link(Settings) ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, Settings).

%% @private
-spec init(py_reactor_settings:settings()) ->
    {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(#{contexts := Size} = Settings) ->
    ok = py_reactor_pool:make_table(),
    ok = py_reactor_listeners:make_table(),
    ok = py_reactor_functions:make_table(),
    Child = fun(Module, Argument) ->
        #{id => Module, start => {Module, start_link, Argument}}
    end,
    Supervisor = fun(Module, Argument) ->
        (Child(Module, Argument))#{type => supervisor, shutdown => infinity}
    end,
    %% No connection depends on a helper, so one that fails a few times must not end them all.
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10}, [
        Child(py_reactor_events, [Settings]),
        Child(py_reactor_log, []),
        Child(py_reactor_python, [Settings]),
        %% Before the contexts, whose connections may call functions to their end.
        Child(py_reactor_functions, []),
        Child(py_reactor_pool, [Size]),
        Child(py_reactor_watchdog, [Settings]),
        Supervisor(py_reactor_context_sup, [Size]),
        %% Last, so that listeners end first: what they still serve needs contexts.
        Supervisor(py_reactor_listeners, [])
    ]}}.
